// The parts of the report's page: html_report.cc puts them together. Each returns HTML, or nothing where
// there is nothing to say.
#pragma once
#include <string>
#include <vector>

#include "launcher/report/html_report.h"
#include "launcher/report/svg_chart.h"

namespace carousel {

// Of the newest values of a curve, about a fiftieth of all.
double RecentMean(const Curve& curve);
double RecentTokensPerSecond(const RunHistory& history);
std::vector<ChartPoint> ThroughputPoints(const RunHistory& history);
// Where a step's time goes: waiting for data, for other ranks, for a save.
Chart TimeShares(const RunHistory& history);
// "2026-11-22 10:27:26 UTC"; "-" for 0.
std::string UtcTime(double unix_seconds);

std::string GateSection(const RunHistory& history);
std::string RankSection(const ReportInput& input);   // stragglers
std::string EventSection(const ReportInput& input);  // checkpoints, spikes, skipped steps
std::string SampleSection(const RunHistory& history);
std::string LengthSection(const RunHistory& history);  // accuracy by the length of the problem
std::string StartSection(const ReportInput& input);    // starts, attempts, environment
std::string ConfigSection(const ReportInput& input);
}  // namespace carousel

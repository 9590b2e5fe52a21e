// Charts as inline SVG, for the HTML report: styled by the page's CSS classes, read by its script.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "launcher/report/curve.h"

namespace carousel {

// Text for HTML and SVG, between tags or in quoted attributes: & < > " ' escaped, what is not UTF-8 replaced,
// control characters other than tab and line break shown as U+FFFD.
std::string EscapedHtml(const std::string& text);
// "1.25", "3.0e-4", "12.3k", "4.1M": few digits, for people. "-" for what is not finite.
std::string ShortNumber(double value, int digits = 4);
// "12,345,678".
std::string Thousands(int64_t value);

struct ChartPoint {
  double x = 0;
  double y = 0, min = 0, max = 0;  // of the bucket; min and max equal y where there is no spread
  bool after_gap = false;          // before it are steps without a finite value: the line is broken
};
struct ChartSeries {
  std::string name;
  std::string color;  // a CSS class: "c1" ... "c6"
  std::vector<ChartPoint> points = {};
  bool band = false;    // from min to max, behind the line
  bool smooth = false;  // a bold moving average over a faint line
  bool dots = false;    // a dot at each point
};
struct ChartLine {  // a horizontal line for comparison
  std::string label;
  double y = 0;
};
struct ChartMark {  // something that happened at a step
  double x = 0;
  std::string color;      // a CSS class: "ok", "bad", "warn", "start", "back"
  std::string label;      // shown when pointed at
  std::string kind = {};  // for the legend, which names each kind once; empty: not there
};
struct Chart {
  std::string title;
  std::string unit = {};  // behind numbers in the title's line: "nats per token"
  int64_t width = 560, height = 240;
  bool log_y = false;      // where all values are above 0
  bool from_zero = false;  // the axis begins at 0
  // Steps that the x axis shows beside those of the points; both 0: none.
  double first_x = 0, last_x = 0;
  std::vector<ChartSeries> series = {};
  std::vector<ChartLine> lines = {};
  std::vector<ChartMark> marks = {};
};

// The points of a curve; buckets without a finite value are left out.
std::vector<ChartPoint> PointsOf(const Curve& curve, double scale = 1);

// <figure> with title, legend and drawing; a note instead of a drawing where there are no points. A few
// values far outside of the others do not flatten the rest: they are cut at the border, which shows them as
// small triangles.
std::string RenderChart(const Chart& chart);

// Rows of cells, coloured by value from low to high, newest columns at the right.
struct Heatmap {
  std::string title, unit = {};
  struct Row {
    std::string label;
    std::vector<ChartPoint> points = {};
  };
  std::vector<Row> rows = {};  // drawn from the top; more than 64 are joined
  int64_t width = 560;
  // The ends of the colour scale; both 0: those of the values.
  double low = 0, high = 0;
};
std::string RenderHeatmap(const Heatmap& map);
}  // namespace carousel

#include "launcher/report/html_report.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/time/time.h"
#include "launcher/console.h"
#include "launcher/report/html_page.h"
#include "launcher/report/html_report_sections.h"
#include "launcher/report/svg_chart.h"

namespace carousel {
namespace {

std::string Tile(const std::string& label, const std::string& value, const std::string& note = "") {
  return absl::StrCat("<div class=\"tile\"><span>", EscapedHtml(label), "</span><b>", EscapedHtml(value),
                      "</b><em>", note.empty() ? "&nbsp;" : EscapedHtml(note), "</em></div>\n");
}

// What fits on one line; the whole stands elsewhere.
constexpr size_t kMaxPillBytes = 60;
std::string Shortened(const std::string& text) {
  const size_t end = text.find_first_of(":;,", 0);
  return end < kMaxPillBytes ? text.substr(0, end) : "ended";
}

std::string LossText(double loss) {
  if (!std::isfinite(loss)) return "not finite";
  return std::abs(loss) < 1e6 ? absl::StrFormat("%.4f", loss) : ShortNumber(loss);
}

std::string BytesText(double bytes) {
  return bytes < 9999.5 * (1 << 20) ? absl::StrFormat("%.0f MiB", bytes / (1 << 20))
                                    : absl::StrFormat("%.1f GiB", bytes / (1 << 30));
}

struct Overview {
  std::string status, status_class;
  int64_t total_steps = 0;
  double eta_seconds = -1;
};

Overview OverviewOf(const ReportInput& in) {
  const RunHistory& h = *in.history;
  Overview o;
  if (!in.starts.empty()) o.total_steps = in.starts.back().start.total_steps;
  const bool ended = !in.starts.empty() && in.starts.back().ended;
  if (ended) {
    o.status = in.starts.back().why;
    o.status_class = o.status == "finished"                       ? "ok"
                     : o.status.find("fail") != std::string::npos ? "bad"
                                                                  : "warn";
  } else if (in.still_going) {
    o.status = "running";
    o.status_class = "run";
  } else if (h.last_step > 0) {
    o.status = "not running, no orderly end";
    o.status_class = "warn";
  } else {
    o.status = "not started";
    o.status_class = "warn";
  }
  if (!ended && in.still_going && h.recent_step_seconds > 0 && o.total_steps >= h.last_step) {
    o.eta_seconds = h.recent_step_seconds * static_cast<double>(o.total_steps - h.last_step);
  }
  return o;
}

std::string Header(const ReportInput& in, const Overview& o) {
  const RunHistory& h = *in.history;
  const RunStart* start = in.starts.empty() ? nullptr : &in.starts.back().start;
  std::string name = in.run_dir;
  while (name.size() > 1 && name.back() == '/') name.pop_back();
  const std::string base = name.substr(name.rfind('/') == std::string::npos ? 0 : name.rfind('/') + 1);
  // The page's script says so when a page of a run that goes on has not been drawn again for long.
  const std::string drawn = o.status_class == "run"
                                ? absl::StrFormat(" data-drawn=\"%.0f\" data-between=\"%.0f\"",
                                                  in.unix_seconds, std::min(in.seconds_between, 1e6))
                                : "";
  const bool is_long = o.status.size() > kMaxPillBytes;
  std::string html = absl::StrCat(
      "<header><h1>", EscapedHtml(base), "</h1><span class=\"pill ", o.status_class, "\"", drawn, ">",
      EscapedHtml(is_long ? Shortened(o.status) : o.status), "</span></header>\n",
      is_long ? absl::StrCat("<p>", EscapedHtml(o.status), "</p>\n") : "", "<div class=\"sub\">");
  if (start != nullptr) {
    absl::StrAppend(&html, ShortNumber(static_cast<double>(start->num_parameters)), " parameters &middot; ",
                    Thousands(start->num_ranks), start->num_ranks == 1 ? " rank" : " ranks", " on ",
                    EscapedHtml(start->device), " &middot; ");
  }
  absl::StrAppend(&html, EscapedHtml(in.run_dir), " &middot; as of ", UtcTime(in.unix_seconds), "</div>\n");
  const double done =
      o.total_steps > 0 ? std::min(1.0, static_cast<double>(h.last_step) / static_cast<double>(o.total_steps))
                        : 0;
  absl::StrAppendFormat(&html, "<div class=\"bar\" title=\"%.1f %%\"><i style=\"width:%.2f%%\"></i></div>\n",
                        100 * done, 100 * done);

  html += "<div class=\"tiles\">\n";
  html +=
      Tile("step", Thousands(h.last_step),
           o.total_steps > 0 ? absl::StrFormat("of %s, %.1f %%", Thousands(o.total_steps), 100 * done) : "");
  html += Tile("training loss", h.loss.empty() ? "-" : LossText(RecentMean(h.loss)),
               h.loss.empty() ? "" : absl::StrCat("newest ", LossText(h.last_loss)));
  if (!h.validation.empty()) {
    std::string note = absl::StrCat("at step ", Thousands(h.last_validation_step));
    if (std::isfinite(h.last_bits_per_byte))
      note = absl::StrCat(LossText(h.last_bits_per_byte), " bits/byte");
    if (!h.by_length.empty()) note = absl::StrCat("accuracy ", ShortNumber(100 * h.last_accuracy), " %");
    html += Tile("validation loss", LossText(h.last_validation), note);
  }
  const double rate = RecentTokensPerSecond(h);
  html += Tile(
      "tokens per second", rate > 0 ? ShortNumber(rate) : "-",
      h.recent_step_seconds > 0 ? absl::StrFormat("%s s/step", ShortNumber(h.recent_step_seconds)) : "");
  if (!h.mfu.empty() && h.mfu.buckets().back().num_values > 0) {
    html += Tile("model FLOP/s", absl::StrFormat("%.1f %%", 100 * h.mfu.buckets().back().mean()),
                 "of the devices' peak");
  } else if (!h.flops.empty() && h.flops.buckets().back().num_values > 0) {
    html += Tile("model FLOP/s", ShortNumber(h.flops.buckets().back().mean()), "newest interval");
  }
  html += Tile("tokens", ShortNumber(static_cast<double>(h.tokens)), absl::StrCat(Thousands(h.tokens)));
  html += Tile("time", FormatDuration(h.wall_seconds),
               o.eta_seconds >= 0 ? absl::StrCat("left: ", FormatDuration(o.eta_seconds)) : "");
  if (!h.memory.empty() && h.memory.buckets().back().num_values > 0) {
    html += Tile("memory of rank 0", BytesText(h.memory.buckets().back().mean()), "resident");
  }
  if (h.skipped.num_added() + h.spikes.num_added() > 0) {
    html += Tile("skipped steps", Thousands(h.skipped.num_added()),
                 absl::StrCat(h.spikes.num_added(), " spikes noted"));
  }
  return html + "</div>\n";
}

std::vector<ChartMark> MarksOf(const ReportInput& in) {
  const RunHistory& h = *in.history;
  std::vector<ChartMark> marks;
  for (const int64_t step : h.saved_steps.items()) {
    marks.push_back({.x = static_cast<double>(step),
                     .color = "ok",
                     .label = absl::StrCat("checkpoint of step ", Thousands(step)),
                     .kind = "checkpoint"});
  }
  for (size_t i = 1; i < in.starts.size(); ++i) {
    const RunStart& s = in.starts[i].start;
    marks.push_back({.x = static_cast<double>(s.step) + 0.5,
                     .color = "start",
                     .label = absl::StrCat("start ", s.attempt, " went on from step ", Thousands(s.step)),
                     .kind = "started again"});
  }
  for (const int64_t step : h.rollbacks.items()) {
    marks.push_back({.x = static_cast<double>(step) + 0.5,
                     .color = "back",
                     .label = absl::StrCat("rolled back to step ", Thousands(step)),
                     .kind = "rolled back"});
  }
  for (const int64_t step : h.spikes.items()) {
    marks.push_back({.x = static_cast<double>(step),
                     .color = "warn",
                     .label = absl::StrCat("spike at step ", Thousands(step)),
                     .kind = "spike"});
  }
  for (const int64_t step : h.skipped.items()) {
    marks.push_back({.x = static_cast<double>(step),
                     .color = "bad",
                     .label = absl::StrCat("step ", Thousands(step), " skipped"),
                     .kind = "skipped step"});
  }
  return marks;
}

double ConfigNumber(const ReportInput& in, const std::string& name) {
  for (const auto& [field, value] : in.config) {
    double number = 0;
    if (field == name && absl::SimpleAtod(value, &number)) return number;
  }
  return 0;
}

std::string Curves(const ReportInput& in) {
  const RunHistory& h = *in.history;
  const RunStart start = in.starts.empty() ? RunStart{} : in.starts.back().start;
  std::string html = "<h2>Training</h2>\n<div class=\"grid\">\n";
  // All have the same axis: of all steps, those without a finite value too.
  const double first_x = h.loss.empty() ? 0 : static_cast<double>(h.loss.buckets().front().last_step);
  const double last_x = h.loss.empty() ? 0 : static_cast<double>(h.loss.buckets().back().last_step);
  const auto draw = [&](Chart chart) {
    chart.first_x = first_x;
    chart.last_x = last_x;
    return RenderChart(chart);
  };

  Chart loss = {
      .title = "Loss", .unit = "nats per token", .width = 1180, .height = 330, .marks = MarksOf(in)};
  loss.series.push_back(
      {.name = "training", .color = "c1", .points = PointsOf(h.loss), .band = true, .smooth = true});
  if (!h.validation.empty()) {
    loss.series.push_back({.name = "validation",
                           .color = "c2",
                           .points = PointsOf(h.validation),
                           .dots = h.validation.buckets().size() <= 80});
  }
  if (h.source_entropy > 0) {
    loss.lines.push_back(
        {.label = absl::StrFormat("entropy of the source %.4f", h.source_entropy), .y = h.source_entropy});
  }
  if (start.unigram_entropy > 0) {
    loss.lines.push_back(
        {.label = absl::StrFormat("single tokens %.4f", start.unigram_entropy), .y = start.unigram_entropy});
  }
  if (start.vocab_size > 1) {
    const double uniform = std::log(static_cast<double>(start.vocab_size));
    loss.lines.push_back({.label = absl::StrFormat("guessing %.4f", uniform), .y = uniform});
  }
  absl::StrAppend(&html, "<div class=\"wide\">", draw(loss), "</div>\n");

  Chart norm = {.title = "Gradient norm", .unit = "before clipping", .log_y = true};
  norm.series.push_back(
      {.name = "norm", .color = "c4", .points = PointsOf(h.grad_norm), .band = true, .smooth = true});
  if (const double clip = ConfigNumber(in, "optimizer.clip_norm"); clip > 0) {
    norm.lines.push_back({.label = absl::StrCat("clipped above ", ShortNumber(clip)), .y = clip});
  }
  for (const ChartMark& mark : loss.marks) {
    if (mark.color == "ok") continue;
    norm.marks.push_back(mark);
    norm.marks.back().kind.clear();  // the legend above says it
  }
  html += draw(norm);

  Chart rate = {.title = "Learning rate", .from_zero = true};
  rate.series.push_back({.name = "rate", .color = "c3", .points = PointsOf(h.lr)});
  html += draw(rate);

  Chart speed = {.title = "Throughput", .unit = "tokens per second", .from_zero = true};
  speed.series.push_back({.name = "tokens/s", .color = "c1", .points = ThroughputPoints(h), .smooth = true});
  html += draw(speed);

  html += draw(TimeShares(h));

  Chart memory = {.title = "Memory of rank 0", .unit = "MiB resident", .from_zero = true};
  memory.series.push_back(
      {.name = "MiB", .color = "c6", .points = PointsOf(h.memory, 1.0 / (1 << 20)), .band = true});
  html += draw(memory);

  if (h.accuracy.num_added() > 0 && !h.by_length.empty()) {
    Chart accuracy = {.title = "Accuracy", .unit = "of validation, %", .from_zero = true};
    accuracy.series.push_back(
        {.name = "%", .color = "c2", .points = PointsOf(h.accuracy, 100), .dots = true});
    html += draw(accuracy);
  }
  if (!h.mfu.empty()) {
    Chart mfu = {.title = "Model FLOP/s", .unit = "% of the devices' peak", .from_zero = true};
    mfu.series.push_back({.name = "%", .color = "c5", .points = PointsOf(h.mfu, 100), .band = true});
    html += draw(mfu);
  } else {
    Chart flops = {.title = "Model FLOP/s", .unit = "TFLOP/s of all ranks", .from_zero = true};
    flops.series.push_back(
        {.name = "TFLOP/s", .color = "c5", .points = PointsOf(h.flops, 1e-12), .band = true});
    html += draw(flops);
  }
  return html + "</div>\n";
}
}  // namespace

std::string RenderReport(const ReportInput& in) {
  const Overview overview = OverviewOf(in);
  std::string body = Header(in, overview);
  body += Curves(in);
  body += GateSection(*in.history);
  body += RankSection(in);
  body += EventSection(in);
  body += SampleSection(*in.history);
  body += LengthSection(*in.history);
  body += StartSection(in);
  body += ConfigSection(in);
  absl::StrAppend(&body, "<footer>Drawn from ", Thousands(in.history->num_lines),
                  " records of metrics.jsonl");
  if (in.history->num_not_understood > 0) {
    absl::StrAppend(&body, ", ", Thousands(in.history->num_not_understood), " of them not understood");
  }
  absl::StrAppend(&body,
                  ". Faint: every step, or from least to largest where many share a point; bold: a moving "
                  "average. Triangles at a border: values beyond it. Where a line is broken, values were not "
                  "finite.</footer>\n");
  const int64_t refresh = in.still_going && overview.status_class == "run"
                              ? std::llround(std::clamp(in.seconds_between, 5.0, 1e6))
                              : 0;
  const std::string step = in.history->last_step > 0 ? absl::StrCat(" step ", in.history->last_step) : "";
  return HtmlPage(absl::StrCat(in.run_dir, step), body, refresh);
}
}  // namespace carousel

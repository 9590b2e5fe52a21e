#include "launcher/report/html_report_sections.h"

#include <algorithm>
#include <cmath>
#include <map>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "absl/strings/string_view.h"
#include "absl/time/time.h"
#include "launcher/console.h"

namespace carousel {
namespace {

// A row of a table; cells are HTML already. The first of `numbers_from` cells on stand right.
std::string Row(const std::vector<std::string>& cells, const char* tag, const std::string& alignment) {
  std::string html = "<tr>";
  for (size_t i = 0; i < cells.size(); ++i) {
    const bool number = i < alignment.size() && alignment[i] == 'n';
    absl::StrAppend(&html, "<", tag, number ? " class=\"n\">" : ">", cells[i], "</", tag, ">");
  }
  return html + "</tr>\n";
}

// A share of a column's sum in another column with the same buckets, in percent.
std::vector<ChartPoint> SharePoints(const Curve& part, const Curve& whole) {
  std::vector<ChartPoint> points;
  const size_t count = std::min(part.buckets().size(), whole.buckets().size());
  for (size_t i = 0; i < count; ++i) {
    const Curve::Bucket &p = part.buckets()[i], &w = whole.buckets()[i];
    if (!(w.sum > 0)) continue;
    const double share = std::clamp(100 * p.sum / w.sum, 0.0, 100.0);
    points.push_back({.x = static_cast<double>(w.last_step), .y = share, .min = share, .max = share});
  }
  return points;
}

std::string Heading(const std::string& title, const std::string& note = "") {
  return absl::StrCat("<h2>", title, note.empty() ? "" : absl::StrCat("<small>", note, "</small>"),
                      "</h2>\n");
}

std::string Seconds(double seconds) {
  return std::isfinite(seconds) ? absl::StrCat(ShortNumber(seconds), " s") : "-";
}
std::string Over(double percent) {
  return std::abs(percent) < 1e6 ? absl::StrFormat("%+.1f %%", percent) : "-";
}
}  // namespace

std::string UtcTime(double unix_seconds) {
  if (!(unix_seconds > 0) || unix_seconds > 1e11) return "-";
  return absl::FormatTime("%Y-%m-%d %H:%M:%S UTC", absl::FromUnixSeconds(std::llround(unix_seconds)),
                          absl::UTCTimeZone());
}

double RecentMean(const Curve& curve) {
  double sum = 0;
  int64_t count = 0;
  const int64_t wanted = std::max<int64_t>(1, curve.num_added() / 50);
  for (auto b = curve.buckets().rbegin(); b != curve.buckets().rend() && count < wanted; ++b) {
    sum += b->sum;
    count += b->num_values;
  }
  return count > 0 ? sum / static_cast<double>(count) : std::nan("");
}

double RecentTokensPerSecond(const RunHistory& h) {
  double tokens = 0, seconds = 0;
  const size_t size = std::min(h.step_tokens.buckets().size(), h.seconds.buckets().size());
  for (size_t back = 0; back < size && (back < 5 || seconds < 1); ++back) {
    const Curve::Bucket& t = h.step_tokens.buckets()[size - 1 - back];
    if (t.sum <= 0) continue;
    tokens += t.sum;
    seconds += h.seconds.buckets()[size - 1 - back].sum;
  }
  return seconds > 0 ? tokens / seconds : 0;
}

std::vector<ChartPoint> ThroughputPoints(const RunHistory& h) {
  std::vector<ChartPoint> points;
  const size_t size = std::min(h.step_tokens.buckets().size(), h.seconds.buckets().size());
  for (size_t i = 0; i < size; ++i) {
    const Curve::Bucket &t = h.step_tokens.buckets()[i], &s = h.seconds.buckets()[i];
    if (!(t.sum > 0) || !(s.sum > 0)) continue;
    // All steps have the same tokens, unless the batch was changed: the slowest and the fastest step give the
    // ends.
    const double rate = t.sum / s.sum, tokens = t.mean();
    points.push_back({.x = static_cast<double>(t.last_step),
                      .y = rate,
                      .min = s.max > 0 ? std::min(rate, tokens / s.max) : rate,
                      .max = s.min > 0 ? std::max(rate, tokens / s.min) : rate});
  }
  return points;
}

Chart TimeShares(const RunHistory& h) {
  Chart chart = {.title = "Time not spent computing", .unit = "% of a step, on rank 0", .from_zero = true};
  const auto add = [&](const char* name, const char* color, const Curve& part) {
    chart.series.push_back({.name = name, .color = color, .points = SharePoints(part, h.seconds)});
  };
  add("data", "c2", h.data_wait);
  const auto any = [](const Curve& curve) {
    return std::any_of(curve.buckets().begin(), curve.buckets().end(),
                       [](const Curve::Bucket& b) { return b.max > 0; });
  };
  // A rank alone has none.
  if (any(h.communication)) add("communication", "c1", h.communication);
  if (any(h.checkpoint_stall)) add("checkpoints", "c3", h.checkpoint_stall);
  return chart;
}

std::string GateSection(const RunHistory& h) {
  if (h.gates.empty()) return {};
  using Gate = RunHistory::GateCurves::Gate;
  std::string html = Heading(
      "Gates", absl::StrCat("pre-activations per block over time, newest: step ", Thousands(h.gates_step)));
  html += "<div class=\"grid\">\n";
  const auto heatmap = [&](const std::string& title, const std::string& unit,
                           Gate RunHistory::GateCurves::*gate, Curve Gate::*curve, double scale,
                           double high) {
    Heatmap map = {.title = title, .unit = unit, .high = high};
    for (const RunHistory::GateCurves& block : h.gates) {
      map.rows.push_back({.label = absl::StrCat(block.slstm ? "s " : "m ", block.block),
                          .points = PointsOf(block.*gate.*curve, scale)});
    }
    if (high > 0) {
      // Of shares the scale begins at 0 and ends where the largest is.
      double largest = 0;
      for (const Heatmap::Row& row : map.rows) {
        for (const ChartPoint& p : row.points) largest = std::max(largest, p.y);
      }
      for (const double end : {1.0, 2.0, 5.0, 10.0, 20.0, 50.0, 100.0}) {
        map.high = end;
        if (largest <= end) break;
      }
    }
    return RenderHeatmap(map);
  };
  using Curves = RunHistory::GateCurves;
  html += heatmap("Input gate, mean", "pre-activation", &Curves::input, &Gate::mean, 1, 0);
  html += heatmap("Forget gate, mean", "pre-activation", &Curves::forget, &Gate::mean, 1, 0);
  html += heatmap("Input gate at its cap", "% of tokens and heads", &Curves::input, &Gate::beyond, 100, 100);
  html += heatmap("Forget gate wide open", "% above 7", &Curves::forget, &Gate::above, 100, 100);
  html += heatmap("Forget gate shut", "% below -7", &Curves::forget, &Gate::below, 100, 100);
  Chart logits = {.title = "Logits", .unit = "before their soft cap"};
  logits.series.push_back({.name = "largest", .color = "c5", .points = PointsOf(h.logits_max), .band = true});
  logits.series.push_back({.name = "root mean square", .color = "c4", .points = PointsOf(h.logits_rms)});
  logits.series.push_back({.name = "log sum exp", .color = "c6", .points = PointsOf(h.log_sum_exp)});
  html += RenderChart(logits);
  html += "</div>\n";
  // The newest numbers.
  html +=
      "<details class=\"card\" style=\"margin-top:12px\"><summary>newest numbers of every "
      "block</summary><table>";
  html += Row({"block", "cell", "input mean", "min", "max", "at cap %", "forget mean", "min", "max", "shut %",
               "open %"},
              "th", "n nnnnnnnnn");
  const auto newest = [](const Curve& curve, double scale) {
    if (curve.empty() || curve.buckets().back().num_values == 0) return std::string("-");
    return ShortNumber(curve.buckets().back().mean() * scale);
  };
  for (const Curves& b : h.gates) {
    html += Row({absl::StrCat(b.block), b.slstm ? "sLSTM" : "mLSTM", newest(b.input.mean, 1),
                 newest(b.input.min, 1), newest(b.input.max, 1), newest(b.input.beyond, 100),
                 newest(b.forget.mean, 1), newest(b.forget.min, 1), newest(b.forget.max, 1),
                 newest(b.forget.below, 100), newest(b.forget.above, 100)},
                "td", "n nnnnnnnnn");
  }
  return html + "</table></details>\n";
}

std::string RankSection(const ReportInput& in) {
  const RunHistory& h = *in.history;
  if (h.ranks.num_ranks == 0) return {};
  std::string html = Heading(
      "Ranks", "seconds per step between collectives: computing, data and disk, without waiting for others");
  html += "<div class=\"grid\">\n";
  Chart chart = {.title = "Fastest, median and slowest rank", .unit = "seconds per step", .from_zero = true};
  chart.series.push_back({.name = "slowest", .color = "c5", .points = PointsOf(h.rank_max)});
  chart.series.push_back({.name = "median", .color = "c1", .points = PointsOf(h.rank_median)});
  chart.series.push_back({.name = "fastest", .color = "c3", .points = PointsOf(h.rank_min)});
  html += RenderChart(chart);
  html += "<div class=\"card\"><b>Slowest hosts</b> <span class=\"unit\">the " +
          Thousands(h.ranks.num_steps) + " steps before step " + Thousands(h.ranks_step + 1) +
          "</span><table>";
  html += Row({"host", "rank", "busy", "over the median"}, "th", " nnn");
  for (const RankTimings::Rank& rank : h.ranks.worst) {
    html +=
        Row({EscapedHtml(rank.host), absl::StrCat(rank.rank), Seconds(rank.seconds), Over(rank.percent_over)},
            "td", " nnn");
  }
  html += "</table><p class=\"unit\">" + Thousands(h.ranks.num_ranks) + " ranks: fastest " +
          Seconds(h.ranks.min_seconds) + ", median " + Seconds(h.ranks.median_seconds) + ", slowest " +
          Seconds(h.ranks.max_seconds) + "</p>";
  if (!h.ranks.crowded_hosts.empty()) {
    absl::StrAppend(&html, "<p>Ranks share cores on ",
                    EscapedHtml(absl::StrJoin(h.ranks.crowded_hosts, ", ")),
                    ": there the times depend on who gets a core when, and nobody is named.</p>");
  } else if (h.chronic.empty()) {
    html += "<p>No rank has been too slow for long.</p>";
  }
  if (!h.chronic.empty()) {
    html += "<b>Slow for long</b><table>" + Row({"host", "rank", "steps", "at most"}, "th", " nnn");
    for (const auto& [number, rank] : h.chronic) {
      html += Row({EscapedHtml(rank.host), absl::StrCat(number),
                   absl::StrCat(Thousands(rank.first_step), " to ", Thousands(rank.last_step)),
                   Over(rank.percent_over)},
                  "td", " nnn");
    }
    html += "</table>";
  }
  return html + "</div></div>\n";
}

std::string EventSection(const ReportInput& in) {
  const RunHistory& h = *in.history;
  std::string html = Heading("Events") + "<div class=\"grid own\">\n<div class=\"card\"><b>Checkpoints</b>";
  if (h.checkpoint_outcomes.empty()) {
    html += "<p class=\"none\">none yet</p>";
  } else {
    std::vector<std::string> counts;
    for (const auto& [outcome, count] : h.checkpoint_outcomes)
      counts.push_back(absl::StrCat(Thousands(count), " ", EscapedHtml(outcome)));
    absl::StrAppend(&html, " <span class=\"unit\">", absl::StrJoin(counts, ", "), "</span><table>");
    html += Row({"step", "outcome", "took", "training waited", "size"}, "th", "n nnn");
    std::vector<CheckpointMetrics> shown = h.checkpoints.items();
    if (shown.size() > 8) shown.erase(shown.begin(), shown.end() - 8);
    shown.insert(shown.end(),
                 h.failures.end() - std::min<int64_t>(8, static_cast<int64_t>(h.failures.size())),
                 h.failures.end());
    std::stable_sort(shown.begin(), shown.end(),
                     [](const auto& a, const auto& b) { return a.step < b.step; });
    for (const CheckpointMetrics& c : shown) {
      const char* const pill = c.outcome == "failed" ? "bad" : c.outcome == "skipped" ? "warn" : nullptr;
      const std::string outcome =
          absl::StrCat(pill != nullptr ? absl::StrCat("<span class=\"pill ", pill, "\">") : "",
                       EscapedHtml(c.outcome), pill != nullptr ? "</span>" : "",
                       c.message.empty() ? "" : absl::StrCat("<br>", EscapedHtml(c.message)));
      html += Row(
          {Thousands(c.step), outcome, c.outcome == "saved" ? Seconds(c.seconds) : "-",
           c.outcome == "saved" ? Seconds(c.seconds_stalled) : "-",
           c.num_bytes > 0 ? absl::StrFormat("%.1f MiB", static_cast<double>(c.num_bytes) / (1 << 20)) : "-"},
          "td", "n nnn");
    }
    html += "</table>";
  }
  html += "</div>\n<div class=\"card\"><b>Health</b>";
  std::vector<std::string> counts;
  if (h.health_kinds.count("skipped") == 0) {
    counts.push_back(absl::StrCat(Thousands(h.skipped.num_added()), " skipped steps"));
  }
  for (const auto& [kind, count] : h.health_kinds)
    counts.push_back(absl::StrCat(Thousands(count), " ", EscapedHtml(kind)));
  absl::StrAppend(&html, " <span class=\"unit\">", absl::StrJoin(counts, ", "), "</span>");
  if (h.skipped.num_added() > 0) {
    std::vector<std::string> steps;
    const std::vector<int64_t>& all = h.skipped.items();
    for (size_t i = all.size() - std::min<size_t>(all.size(), 20); i < all.size(); ++i)
      steps.push_back(Thousands(all[i]));
    absl::StrAppend(&html, "<p>Skipped: ", absl::StrJoin(steps, ", "), "</p>");
  }
  if (h.health.empty()) {
    if (h.skipped.num_added() == 0) html += "<p class=\"none\">nothing to report</p>";
  } else {
    html += "<table>" + Row({"step", "kind", "what"}, "th", "n");
    for (size_t i = h.health.size(); i-- > 0 && i + 12 >= h.health.size();) {
      const HealthEvent& e = h.health[i];
      html += Row({Thousands(e.step), EscapedHtml(e.kind), EscapedHtml(e.message)}, "td", "n");
    }
    html += "</table>";
  }
  return html + "</div>\n</div>\n";
}

std::string SampleSection(const RunHistory& h) {
  if (h.samples.items().empty()) return {};
  std::string html = Heading("Samples", "what the model writes, newest first") + "<div class=\"card\">";
  const std::vector<RunHistory::Sample>& samples = h.samples.items();
  for (size_t i = samples.size(); i-- > 0;) {
    absl::StrAppend(&html, "<div class=\"sample\"><span>step ", Thousands(samples[i].step), "</span><pre>",
                    EscapedHtml(samples[i].text), "</pre></div>\n");
  }
  return html + "</div>\n";
}

std::string LengthSection(const RunHistory& h) {
  if (h.by_length.empty()) return {};
  std::string html = Heading("Accuracy by length",
                             absl::StrCat("newest evaluation, step ", Thousands(h.last_validation_step)));
  html += "<div class=\"card\"><table>" + Row({"length of the problem", "answers", "right"}, "th", " nn");
  for (const RunHistory::LengthAccuracy& b : h.by_length) {
    html +=
        Row({b.from == b.to ? Thousands(b.from) : absl::StrCat(Thousands(b.from), " to ", Thousands(b.to)),
             Thousands(b.count), absl::StrCat(ShortNumber(100 * b.accuracy), " %")},
            "td", " nn");
  }
  return html + "</table></div>\n";
}

std::string StartSection(const ReportInput& in) {
  if (in.starts.empty() && in.attempts.empty()) return {};
  std::string html = Heading("Starts and environment");
  html += "<div class=\"card\"><table>" +
          Row({"start", "began", "from step", "to step", "how it ended", "ranks", "mesh, device, hosts"},
              "th", "n nn n");
  const size_t first = in.starts.size() > 20 ? in.starts.size() - 20 : 0;
  for (size_t i = in.starts.size(); i-- > first;) {
    const RecordedStart& r = in.starts[i];
    const bool newest = i + 1 == in.starts.size();
    const std::string to = r.ended ? Thousands(r.end_step) : newest ? Thousands(in.history->last_step) : "-";
    const std::string how = r.ended                    ? r.why
                            : newest && in.still_going ? "goes on"
                                                       : "no orderly end (killed, crashed or machine lost)";
    std::vector<std::string> hosts = r.start.hosts;
    const size_t num_hosts = hosts.size();
    if (hosts.size() > 8) hosts.resize(8);
    const std::string where =
        absl::StrCat(r.start.mesh, "; ", r.start.device, "; ", absl::StrJoin(hosts, ", "),
                     num_hosts > 8 ? absl::StrCat(" and ", num_hosts - 8, " more") : "");
    html += Row({absl::StrCat(r.start.attempt), UtcTime(r.start.unix_seconds), Thousands(r.start.step), to,
                 EscapedHtml(how), Thousands(r.start.num_ranks), EscapedHtml(where)},
                "td", "n nn n");
  }
  html += "</table>";
  if (!in.starts.empty()) {
    const RunStart& s = in.starts.back().start;
    absl::StrAppend(&html, "<p class=\"unit\">newest start: ", EscapedHtml(s.build), "<br><code>",
                    EscapedHtml(s.command), "</code></p>");
  }
  html += "</div>\n";
  if (!in.attempts.empty()) {
    html += "<div class=\"card\" style=\"margin-top:12px\"><b>Attempts of carousel launch</b><table>" +
            Row({"attempt", "ended", "exit code", "step", "checkpoint", "rank, host", "reason", "then"}, "th",
                "n nnn");
    const size_t from = in.attempts.size() > 20 ? in.attempts.size() - 20 : 0;
    for (size_t i = in.attempts.size(); i-- > from;) {
      const RecordedAttempt& a = in.attempts[i];
      const auto number = [](int64_t value) { return value < 0 ? std::string("-") : Thousands(value); };
      html += Row(
          {absl::StrCat(a.attempt), UtcTime(a.ended), absl::StrCat(a.exit_code), number(a.step),
           number(a.last_checkpoint), EscapedHtml(a.rank < 0 ? a.host : absl::StrCat(a.rank, " on ", a.host)),
           EscapedHtml(a.reason), EscapedHtml(a.next)},
          "td", "n nnn");
    }
    html += "</table></div>\n";
  }
  return html;
}

std::string ConfigSection(const ReportInput& in) {
  if (in.config.empty()) return {};
  const std::map<std::string, std::string> defaults(in.default_config.begin(), in.default_config.end());
  std::string set, rest;
  int64_t num_set = 0;
  for (const auto& [name, value] : in.config) {
    const auto usual = defaults.find(name);
    const bool differs = !defaults.empty() && (usual == defaults.end() || usual->second != value);
    const std::string was =
        differs && usual != defaults.end() ? absl::StrCat(" <s>", EscapedHtml(usual->second), "</s>") : "";
    const std::string line =
        absl::StrCat("<div", differs ? " class=\"set\"" : "", "><code>", EscapedHtml(name), "</code><code>",
                     EscapedHtml(value.empty() ? "\"\"" : value), was, "</code></div>\n");
    num_set += differs;
    (differs ? set : rest) += line;
  }
  std::string html = Heading(
      "Config",
      defaults.empty()
          ? ""
          : absl::StrCat(Thousands(num_set), " fields are not at their default, which stands behind them"));
  html += "<div class=\"card\">";
  if (!set.empty()) absl::StrAppend(&html, "<div class=\"conf\">", set, "</div>");
  absl::StrAppend(&html, "<details", set.empty() ? " open" : " style=\"margin-top:10px\"", "><summary>",
                  defaults.empty() ? "all fields" : "the other fields", "</summary><div class=\"conf\">",
                  rest, "</div></details></div>\n");
  return html;
}
}  // namespace carousel

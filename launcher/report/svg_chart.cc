#include "launcher/report/svg_chart.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/text/utf8.h"

namespace carousel {
namespace {

constexpr double kLeft = 52, kRight = 14, kTop = 10, kBottom = 26;

// Numbers that divide an axis in about `count` parts: 1, 2 or 5 times a power of ten apart.
std::vector<double> Ticks(double low, double high, int count, bool whole_numbers) {
  std::vector<double> ticks;
  if (!(high > low)) return {low};
  const double rough = (high - low) / count;
  double step = std::pow(10, std::floor(std::log10(rough)));
  for (const double factor : {1.0, 2.0, 5.0, 10.0}) {
    if (factor * step >= rough * 0.999) {
      step *= factor;
      break;
    }
  }
  if (whole_numbers) step = std::max(1.0, step);
  for (double tick = std::ceil(low / step - 1e-9) * step; tick <= high + 1e-9 * step; tick += step) {
    ticks.push_back(std::abs(tick) < 1e-9 * step ? 0 : tick);
    if (ticks.size() > 50) break;
  }
  return ticks;
}

// Powers of ten, with 2 and 5 between them if there are few.
std::vector<double> LogTicks(double low, double high) {
  std::vector<double> ticks;
  const double decades = std::log10(high) - std::log10(low);
  const int stride = std::max(1, static_cast<int>(std::ceil(decades / 6)));
  for (int e = static_cast<int>(std::floor(std::log10(low))); e <= std::ceil(std::log10(high)); ++e) {
    if (decades > 3 && e % stride != 0) continue;
    for (const double factor : {1.0, 2.0, 5.0}) {
      if (decades > 3 && factor > 1) continue;
      const double tick = factor * std::pow(10, e);
      if (tick >= low * 0.999 && tick <= high * 1.001) ticks.push_back(tick);
    }
  }
  // A narrow range between two of them.
  return ticks.size() < 2 ? Ticks(low, high, 4, false) : ticks;
}

// As many digits as tell neighbours apart.
std::string TickLabel(const std::vector<double>& ticks, size_t i) {
  double largest = 0, apart = 0;
  for (size_t k = 0; k < ticks.size(); ++k) {
    largest = std::max(largest, std::abs(ticks[k]));
    const double gap = k > 0 ? ticks[k] - ticks[k - 1] : 0;
    if (gap > 0 && (apart == 0 || gap < apart)) apart = gap;
  }
  const double digits = apart > 0 ? std::ceil(std::log10(largest) - std::log10(apart)) + 1 : 4;
  return ShortNumber(ticks[i], static_cast<int>(std::clamp(digits, 4.0, 15.0)));
}

// Where numbers lie on the drawing.
struct Scale {
  double low = 0, high = 1, from = 0, to = 1;
  bool log = false;
  double At(double value) const {
    const double part = log ? (std::log(value) - std::log(low)) / (std::log(high) - std::log(low))
                            : (value - low) / (high - low);
    return from + (to - from) * std::clamp(part, 0.0, 1.0);
  }
};

std::string Pixel(double value) {
  std::string text = absl::StrFormat("%.1f", value);
  if (text.ends_with(".0")) text.resize(text.size() - 2);
  return text;
}

double Quantile(std::vector<double> values, double q) {
  const size_t n = static_cast<size_t>(q * static_cast<double>(values.size() - 1));
  std::nth_element(values.begin(), values.begin() + static_cast<int64_t>(n), values.end());
  return values[n];
}

// The range of the y axis. Without the few values that are far from all others.
std::pair<double, double> RangeOf(const Chart& chart) {
  std::vector<double> lows, highs;
  for (const ChartSeries& series : chart.series) {
    for (const ChartPoint& p : series.points) {
      lows.push_back(series.band || series.smooth ? p.min : p.y);
      highs.push_back(series.band || series.smooth ? p.max : p.y);
    }
  }
  if (lows.empty()) return {0, 1};
  double low = *std::min_element(lows.begin(), lows.end());
  double high = *std::max_element(highs.begin(), highs.end());
  const double usual_low = Quantile(lows, 0.02), usual_high = Quantile(highs, 0.98);
  if (!chart.log_y && highs.size() >= 20) {
    const double spread = std::max(usual_high - usual_low, 1e-12 * std::abs(usual_high));
    // Not for a little: what is cut must be worth it.
    if (high > usual_high + 1.2 * spread) high = usual_high + 0.6 * spread;
    if (low < usual_low - 1.2 * spread) low = usual_low - 0.6 * spread;
  }
  for (const ChartLine& line : chart.lines) {
    // A line that is too far away would flatten the curve.
    const double spread = high - low;
    if (line.y > high && line.y < high + 0.8 * spread) high = line.y;
    if (line.y < low && line.y > low - 0.8 * spread) low = line.y;
  }
  if (chart.from_zero) low = std::min(low, 0.0);
  if (chart.log_y) return {low, std::max(high, low * 1.1)};
  const double spread = high - low;
  const double pad = spread > 0 ? 0.05 * spread : std::max(0.05 * std::abs(high), 1e-9);
  if (!(chart.from_zero && low == 0)) low -= pad;
  return {low, high + pad};
}

// Means over about a fiftieth of the points, half of them on either side; on a logarithmic axis those of the
// logarithms, as the eye takes them.
std::vector<ChartPoint> Smoothed(const std::vector<ChartPoint>& points, bool log) {
  std::vector<ChartPoint> result = points;
  const int64_t n = static_cast<int64_t>(points.size()), reach = n / 100;
  for (int64_t i = 0; i < n; ++i) {
    // As many on both sides, so that a slope stays where it is.
    const int64_t r = std::min({reach, i, n - 1 - i});
    double sum = 0;
    for (int64_t k = i - r; k <= i + r; ++k) {
      const double value = points[static_cast<size_t>(k)].y;
      sum += log ? std::log(value) : value;
    }
    const double mean = sum / static_cast<double>(2 * r + 1);
    result[static_cast<size_t>(i)].y = log ? std::exp(mean) : mean;
  }
  return result;
}

void Path(const std::vector<ChartPoint>& points, const Scale& x, const Scale& y, std::string* path) {
  for (size_t i = 0; i < points.size(); ++i) {
    const ChartPoint& p = points[i];
    const bool begins = i == 0 || p.after_gap, ends = i + 1 == points.size() || points[i + 1].after_gap;
    const std::string at = absl::StrCat(Pixel(x.At(p.x)), " ", Pixel(y.At(p.y)));
    absl::StrAppend(path, begins ? "M" : "L", at);
    if (begins && ends) absl::StrAppend(path, "L", at);  // a point alone is seen as well
  }
}

std::string Line(const std::vector<ChartPoint>& points, const Scale& x, const Scale& y,
                 const std::string& classes, const std::string& name) {
  std::string path;
  Path(points, x, y, &path);
  return absl::StrCat("<path class=\"", classes, "\"", name.empty() ? "" : " data-name=\"", EscapedHtml(name),
                      name.empty() ? "" : "\"", " d=\"", path, "\"/>");
}

// Triangles where values were cut.
void CutMarks(const std::vector<ChartPoint>& points, const Scale& x, const Scale& y, std::string* svg) {
  int left = 60;  // more would be a band, not marks
  for (const ChartPoint& p : points) {
    for (const bool above : {true, false}) {
      const double value = above ? p.max : p.min;
      if (above ? value <= y.high * (y.high > 0 ? 1 + 1e-9 : 1) : value >= y.low - 1e-9 * std::abs(y.low)) {
        continue;
      }
      if (left-- <= 0) return;
      const double at = x.At(p.x), edge = above ? kTop : y.from;
      absl::StrAppend(svg, "<path class=\"cut\" d=\"M", Pixel(at - 4), " ", Pixel(edge + (above ? 6 : -6)),
                      "h8l-4 ", above ? "-6" : "6", "z\"><title>step ", Thousands(std::llround(p.x)), ": ",
                      ShortNumber(value), "</title></path>");
    }
  }
}

std::string Head(const std::string& title, const std::string& unit, const std::string& legend) {
  return absl::StrCat(
      "<figure><figcaption><b>", EscapedHtml(title), "</b>",
      unit.empty() ? "" : absl::StrCat(" <span class=\"unit\">", EscapedHtml(unit), "</span>"),
      "<span class=\"legend\">", legend, "</span></figcaption>");
}
}  // namespace

std::string EscapedHtml(const std::string& text) {
  const std::string valid = ValidUtf8(text);
  std::string result;
  result.reserve(valid.size() + valid.size() / 8);
  for (size_t i = 0; i < valid.size(); ++i) {
    const unsigned char c = static_cast<unsigned char>(valid[i]);
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      case '\'':
        result += "&#39;";
        break;
      default: {
        const bool control = (c < 32 && c != '\n' && c != '\t') || c == 127;
        // U+0080 to U+009F: the other set of control characters.
        const bool second_set =
            c == 0xc2 && i + 1 < valid.size() && static_cast<unsigned char>(valid[i + 1]) < 0xa0;
        if (control || second_set) {
          result += "\xef\xbf\xbd";
          i += second_set;
        } else {
          result += static_cast<char>(c);
        }
      }
    }
  }
  return result;
}

std::string ShortNumber(double value, int digits) {
  if (!std::isfinite(value)) return "-";
  const double size = std::abs(value);
  if (size == 0) return "0";
  if (size < 1e-3 || size >= 1e15) return absl::StrFormat("%.*g", digits - 1, value);
  if (size < 1000) return absl::StrFormat("%.*g", digits, value);
  const char* const suffixes[] = {"k", "M", "G", "T"};
  double scaled = value;
  int i = -1;
  while (std::abs(scaled) >= 999.5 && i < 3) {
    scaled /= 1000;
    ++i;
  }
  return absl::StrFormat("%.*g%s", digits, scaled, suffixes[i]);
}

std::string Thousands(int64_t value) {
  std::string digits = absl::StrCat(value);
  for (int64_t at = static_cast<int64_t>(digits.size()) - 3; at > (value < 0 ? 1 : 0); at -= 3) {
    digits.insert(static_cast<size_t>(at), ",");
  }
  return digits;
}

std::vector<ChartPoint> PointsOf(const Curve& curve, double scale) {
  std::vector<ChartPoint> points;
  bool gap = false;
  for (const Curve::Bucket& b : curve.buckets()) {
    if (b.num_values > 0) {
      points.push_back({.x = static_cast<double>(b.last_step),
                        .y = b.mean() * scale,
                        .min = b.min * scale,
                        .max = b.max * scale,
                        .after_gap = gap && !points.empty()});
    }
    gap = b.num_values == 0;
  }
  return points;
}

std::string RenderChart(const Chart& original) {
  Chart chart = original;
  std::string legend;
  bool any = false, all_positive = true;
  double first = 0, last = 0;
  for (const ChartSeries& series : chart.series) {
    if (series.points.empty()) continue;
    for (const ChartPoint& p : series.points) all_positive &= p.min > 0;
    first = any ? std::min(first, series.points.front().x) : series.points.front().x;
    last = any ? std::max(last, series.points.back().x) : series.points.back().x;
    any = true;
    if (chart.series.size() > 1) {
      absl::StrAppend(&legend, "<i class=\"key ", series.color, "\"></i>", EscapedHtml(series.name));
    }
  }
  std::vector<std::string> kinds;
  for (const ChartMark& mark : chart.marks) {
    if (mark.kind.empty() || std::find(kinds.begin(), kinds.end(), mark.kind) != kinds.end()) continue;
    kinds.push_back(mark.kind);
    absl::StrAppend(&legend, "<i class=\"key ", mark.color, "\"></i>", EscapedHtml(mark.kind));
  }
  std::string html = Head(chart.title, chart.unit, legend);
  if (!any) return html + "<p class=\"none\">nothing yet</p></figure>\n";
  if (chart.last_x > 0) {
    first = std::min(first, chart.first_x);
    last = std::max(last, chart.last_x);
  }
  chart.log_y = chart.log_y && all_positive;
  const double W = static_cast<double>(chart.width), H = static_cast<double>(chart.height);
  const auto [low, high] = RangeOf(chart);
  // A single step in the middle.
  const Scale x = {.low = first == last ? first - 1 : first,
                   .high = first == last ? last + 1 : last,
                   .from = kLeft,
                   .to = W - kRight};
  const Scale y = {.low = low, .high = high, .from = H - kBottom, .to = kTop, .log = chart.log_y};
  std::string svg = absl::StrCat("<svg class=\"chart\" viewBox=\"0 0 ", chart.width, " ", chart.height,
                                 "\" role=\"img\" aria-label=\"", EscapedHtml(chart.title), "\"");
  absl::StrAppendFormat(&svg, " data-x=\"%.9g %.9g %s %s\" data-y=\"%.9g %.9g %s %s\"%s>", x.low, x.high,
                        Pixel(x.from), Pixel(x.to), y.low, y.high, Pixel(y.from), Pixel(y.to),
                        y.log ? " data-log=\"1\"" : "");
  // Grid and axes.
  std::string grid, labels;
  const std::vector<double> y_ticks = y.log ? LogTicks(low, high) : Ticks(low, high, 5, false);
  for (size_t i = 0; i < y_ticks.size(); ++i) {
    const std::string at = Pixel(y.At(y_ticks[i]));
    absl::StrAppend(&grid, "M", Pixel(kLeft), " ", at, "H", Pixel(W - kRight));
    absl::StrAppend(&labels, "<text class=\"ty\" x=\"", Pixel(kLeft - 6), "\" y=\"", at, "\">",
                    TickLabel(y_ticks, i), "</text>");
  }
  absl::StrAppend(&svg, "<path class=\"grid\" d=\"", grid, "\"/>");
  const std::vector<double> x_ticks = Ticks(x.low, x.high, chart.width > 800 ? 10 : 6, true);
  for (size_t i = 0; i < x_ticks.size(); ++i) {
    absl::StrAppend(&labels, "<text class=\"tx\" x=\"", Pixel(x.At(x_ticks[i])), "\" y=\"",
                    Pixel(H - kBottom + 16), "\">", TickLabel(x_ticks, i), "</text>");
  }
  absl::StrAppend(&svg, "<path class=\"axis\" d=\"M", Pixel(kLeft), " ", Pixel(H - kBottom), "H",
                  Pixel(W - kRight), "\"/>", labels);
  // What happened when.
  for (const ChartMark& mark : chart.marks) {
    if (mark.x < x.low || mark.x > x.high) continue;
    const std::string at = Pixel(x.At(mark.x));
    const bool is_tick = mark.color == "ok";
    absl::StrAppend(&svg, "<path class=\"mark ", mark.color, "\" d=\"M", at, " ",
                    is_tick ? Pixel(H - kBottom) : Pixel(kTop),
                    is_tick ? "v5" : absl::StrCat("V", Pixel(H - kBottom)), "\"><title>",
                    EscapedHtml(mark.label), "</title></path>");
  }
  for (const ChartLine& line : chart.lines) {
    if (line.y < low || line.y > high) continue;
    const double at = y.At(line.y);
    absl::StrAppend(&svg, "<path class=\"ref\" d=\"M", Pixel(kLeft), " ", Pixel(at), "H", Pixel(W - kRight),
                    "\"/><text class=\"reftext\" x=\"", Pixel(W - kRight - 4), "\" y=\"",
                    Pixel(at < kTop + 14 ? at + 12 : at - 4), "\">", EscapedHtml(line.label), "</text>");
  }
  for (const ChartSeries& series : chart.series) {
    if (series.points.empty()) continue;
    bool spread = false;
    for (const ChartPoint& p : series.points) spread |= p.max > p.min;
    if ((series.band || series.smooth) && spread) {
      std::string path;
      std::vector<ChartPoint> edge = series.points;
      for (ChartPoint& p : edge) p.y = p.max;
      Path(edge, x, y, &path);
      for (auto p = series.points.rbegin(); p != series.points.rend(); ++p) {
        absl::StrAppend(&path, "L", Pixel(x.At(p->x)), " ", Pixel(y.At(p->min)));
      }
      absl::StrAppend(&svg, "<path class=\"band ", series.color, "\" d=\"", path, "z\"/>");
    }
    const bool bold = series.smooth && series.points.size() >= 60;
    if (bold) absl::StrAppend(&svg, Line(series.points, x, y, "faint " + series.color, ""));
    absl::StrAppend(&svg, Line(bold ? Smoothed(series.points, y.log) : series.points, x, y,
                               "line " + series.color, series.name));
    if (series.dots || series.points.size() == 1) {
      for (const ChartPoint& p : series.points) {
        absl::StrAppend(&svg, "<circle class=\"", series.color, "\" cx=\"", Pixel(x.At(p.x)), "\" cy=\"",
                        Pixel(y.At(p.y)), "\" r=\"2.6\"><title>step ", Thousands(std::llround(p.x)), ": ",
                        ShortNumber(p.y), "</title></circle>");
      }
    }
    CutMarks(series.points, x, y, &svg);
  }
  return absl::StrCat(html, svg, "</svg></figure>\n");
}

std::string RenderHeatmap(const Heatmap& map) {
  constexpr int kLevels = 12;
  constexpr size_t kMaxRows = 64;
  double low = map.low, high = map.high, first = 0, last = 0;
  bool any = false;
  for (const Heatmap::Row& row : map.rows) {
    for (const ChartPoint& p : row.points) {
      if (map.low == map.high) {
        low = any ? std::min(low, p.y) : p.y;
        high = any ? std::max(high, p.y) : p.y;
      }
      first = any ? std::min(first, p.x) : p.x;
      last = any ? std::max(last, p.x) : p.x;
      any = true;
    }
  }
  std::string legend;
  if (any) {
    absl::StrAppend(&legend, ShortNumber(low), "<span class=\"ramp\">");
    for (int level = 0; level < kLevels; ++level) absl::StrAppend(&legend, "<i class=\"h", level, "\"></i>");
    absl::StrAppend(&legend, "</span>", ShortNumber(high));
  }
  std::string html = Head(map.title, map.unit, legend);
  if (!any) return html + "<p class=\"none\">nothing yet</p></figure>\n";
  // Of neighbouring rows only every n-th is shown where there are too many.
  const size_t stride = (map.rows.size() + kMaxRows - 1) / kMaxRows;
  const size_t num_rows = (map.rows.size() + stride - 1) / stride;
  const double row_height = num_rows <= 6 ? 20 : num_rows <= 24 ? 11 : 6.5;
  const double W = static_cast<double>(map.width),
               H = kTop + row_height * static_cast<double>(num_rows) + kBottom;
  std::vector<std::string> cells(kLevels);
  std::string labels;
  const size_t label_stride = (num_rows + 11) / 12;
  for (size_t r = 0; r < num_rows; ++r) {
    const Heatmap::Row& row = map.rows[r * stride];
    const double top = kTop + row_height * static_cast<double>(r);
    if (r % label_stride == 0) {
      absl::StrAppend(&labels, "<text class=\"ty\" x=\"", Pixel(kLeft - 6), "\" y=\"",
                      Pixel(top + row_height / 2), "\">", EscapedHtml(row.label), "</text>");
    }
    const double cell = (W - kLeft - kRight) / static_cast<double>(std::max<size_t>(row.points.size(), 1));
    for (size_t i = 0; i < row.points.size();) {
      const auto level_of = [&](size_t at) {
        const double part = high > low ? (row.points[at].y - low) / (high - low) : 0.5;
        return std::clamp(static_cast<int>(part * kLevels), 0, kLevels - 1);
      };
      size_t end = i + 1;
      while (end < row.points.size() && level_of(end) == level_of(i)) ++end;
      const double left = kLeft + cell * static_cast<double>(i);
      absl::StrAppend(&cells[static_cast<size_t>(level_of(i))], "M", Pixel(left), " ", Pixel(top), "H",
                      Pixel(kLeft + cell * static_cast<double>(end)), "v", Pixel(row_height - 1), "H",
                      Pixel(left), "z");
      i = end;
    }
  }
  std::string svg = absl::StrFormat("<svg viewBox=\"0 0 %d %s\" role=\"img\" aria-label=\"%s\">", map.width,
                                    Pixel(H), EscapedHtml(map.title));
  for (int level = 0; level < kLevels; ++level) {
    const std::string& path = cells[static_cast<size_t>(level)];
    if (!path.empty()) absl::StrAppend(&svg, "<path class=\"h", level, "\" d=\"", path, "\"/>");
  }
  absl::StrAppend(&labels, "<text class=\"tx\" x=\"", Pixel(kLeft + 8), "\" y=\"", Pixel(H - kBottom + 16),
                  "\">", ShortNumber(first), "</text>");
  if (last > first) {
    absl::StrAppend(&labels, "<text class=\"tx\" x=\"", Pixel(W - kRight - 8), "\" y=\"",
                    Pixel(H - kBottom + 16), "\">", ShortNumber(last), "</text>");
  }
  return absl::StrCat(html, svg, labels, "</svg></figure>\n");
}
}  // namespace carousel

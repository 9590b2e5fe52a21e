// The report of a run: bounded however long the run is, spikes stay visible, and nothing that a model or a
// file says becomes HTML.
#include "launcher/report/html_report.h"

#include <gtest/gtest.h>

#include <chrono>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <nlohmann/json.hpp>
#include <regex>
#include <set>
#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "absl/strings/str_cat.h"
#include "launcher/report/html_report_sink.h"
#include "launcher/report/metrics_file.h"
#include "launcher/report/svg_chart.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

std::string Read(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  std::ostringstream text;
  text << in.rdbuf();
  return text.str();
}
void Write(const std::string& path, const std::string& text) {
  std::ofstream(path, std::ios::binary | std::ios::trunc) << text;
}
int Count(const std::string& text, const std::string& what) {
  int count = 0;
  for (size_t at = text.find(what); at != std::string::npos; at = text.find(what, at + 1)) ++count;
  return count;
}
std::string StepLine(int64_t step, double loss, const std::string& more = "") {
  return absl::StrCat(
      "{\"step\":", step, ",\"tokens\":", 512 * step, ",\"loss\":", loss,
      ",\"grad_norm\":1.5,\"lr\":0.001,\"seconds\":0.25,\"wall_seconds\":", 0.25 * static_cast<double>(step),
      ",\"data_wait_seconds\":0.5", more, ",\"data_digest\":\"00\",\"skipped\":false}");
}
std::string Render(const RunHistory& history, ReportInput input = {.run_dir = "runs/x"}) {
  input.history = &history;
  return RenderReport(input);
}

// The page without its own script and style: every tag must be one that the report draws itself, and no
// attribute a handler. What comes from outside may only stand between tags or in quotes.
void ExpectOnlyOwnHtml(std::string page) {
  EXPECT_EQ(Count(page, "<script>"), 1);
  page = std::regex_replace(page, std::regex("<style>[^]*?</style>|<script>[^]*?</script>"), "");
  const std::regex tag("<(/?)([^ >]*)((?: [a-zA-Z-]+(?:=\"[^\"<>]*\")?)*)/?>");
  const std::set<std::string> known = {
      "!DOCTYPE", "html",       "head",    "meta", "link", "title",  "body",  "main",  "header",
      "h1",       "h2",         "small",   "span", "div",  "b",      "em",    "i",     "p",
      "figure",   "figcaption", "svg",     "path", "text", "circle", "table", "tr",    "th",
      "td",       "details",    "summary", "code", "pre",  "s",      "br",    "footer"};
  std::string rest;
  size_t at = 0;
  for (std::sregex_iterator match(page.begin(), page.end(), tag), end; match != end; ++match) {
    EXPECT_TRUE(known.count((*match)[2])) << match->str();
    EXPECT_FALSE(std::regex_search(match->str(3), std::regex(" on[a-z]+=", std::regex::icase)))
        << match->str();
    rest += page.substr(at, static_cast<size_t>(match->position()) - at);
    at = static_cast<size_t>(match->position() + match->length());
  }
  rest += page.substr(at);
  EXPECT_EQ(rest.find('<'), std::string::npos)
      << rest.substr(rest.find('<') > 80 ? rest.find('<') - 80 : 0, 300);
}

// ---- curves

TEST(Curve, KeepsExtremesAndMeansOfAnyNumberOfValuesInBoundedMemory) {
  Curve curve(8);
  double sum = 0;
  for (int64_t step = 1; step <= 100'000; ++step) {
    const double value = step == 77'777 ? 1e6 : step == 5 ? -3 : 1;
    sum += value;
    curve.Add(step, value);
  }
  EXPECT_LE(curve.buckets().size(), 8u);
  EXPECT_GE(curve.buckets().size(), 4u);
  double found = 0, least = 0, largest = 0;
  int64_t count = 0, next = 1;
  for (const Curve::Bucket& b : curve.buckets()) {
    EXPECT_EQ(b.first_step, next);
    next = b.last_step + 1;
    found += b.sum;
    count += b.num_values;
    least = std::min(least, b.min);
    largest = std::max(largest, b.max);
  }
  EXPECT_EQ(next, 100'001);
  EXPECT_EQ(count, 100'000);
  EXPECT_EQ(found, sum);
  EXPECT_EQ(least, -3);
  EXPECT_EQ(largest, 1e6);
}

TEST(Curve, CountsWhatIsNotFiniteApart) {
  Curve curve(4);
  for (const double value : {1.0, std::nan(""), HUGE_VAL, 3.0, 5.0}) curve.Add(1, value);
  int64_t finite = 0, other = 0;
  for (const Curve::Bucket& b : curve.buckets()) finite += b.num_values, other += b.num_non_finite;
  EXPECT_EQ(finite, 3);
  EXPECT_EQ(other, 2);
}

TEST(ThinnedList, KeepsTheFirstTheNewestAndSomeBetween) {
  ThinnedList<int64_t> list(10);
  for (int64_t i = 0; i < 12'345; ++i) {
    list.Add(i);
    ASSERT_LE(list.items().size(), 11u);
    EXPECT_EQ(list.items().back(), i);
    EXPECT_EQ(list.items().front(), 0);
  }
  EXPECT_EQ(list.num_added(), 12'345);
  EXPECT_GE(list.items().size(), 5u);
  for (size_t i = 1; i < list.items().size(); ++i) EXPECT_LT(list.items()[i - 1], list.items()[i]);
}

// ---- reading

TEST(RunHistory, ReadsWhatMetricsFileWrites) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  {
    auto file = *MetricsFile::Open(path, 0);
    StepMetrics m = {
        .step = 1, .tokens = 10, .loss = 3.25, .grad_norm = 0.5, .lr = 1e-4, .seconds = 2, .wall_seconds = 2};
    ASSERT_TRUE(file->Append(m).ok());
    m = {
        .step = 2, .tokens = 20, .loss = std::nan(""), .seconds = 2, .data_wait_seconds = 1, .skipped = true};
    m.communication_seconds = 0.5;
    m.checkpoint_seconds = 0.25;
    m.logged = true;
    m.memory_bytes = 123456;
    m.flops_per_second = 1e12;
    m.mfu = 0.4;
    m.ranks.emplace();
    m.ranks->num_steps = 2;
    m.ranks->num_ranks = 4;
    m.ranks->min_seconds = 1;
    m.ranks->median_seconds = 2;
    m.ranks->max_seconds = 3;
    m.ranks->worst.push_back({.rank = 3, .host = "n3", .seconds = 3, .percent_over = 50});
    m.ranks->chronic = m.ranks->worst;
    ASSERT_TRUE(file->Append(m).ok());
    ASSERT_TRUE(
        file->AppendEvaluation({.step = 2, .loss = 2.5, .accuracy = 0.5, .source_entropy = 1.25}).ok());
    ASSERT_TRUE(file->AppendSample(2, "text").ok());
    ASSERT_TRUE(file->AppendCheckpoint({.step = 2, .outcome = "saved", .seconds = 1}).ok());
    ASSERT_TRUE(file->AppendCheckpoint({.step = 3, .outcome = "failed", .message = "full"}).ok());
    ASSERT_TRUE(file->AppendHealth({.step = 2, .kind = "spike", .message = "big"}).ok());
    GateStats gates;
    gates.step = 2;
    gates.layers.push_back({.block = 0,
                            .slstm = true,
                            .input_gate = {.count = 1, .min = -2, .mean = -1, .max = 0, .beyond = 0.5},
                            .forget_gate = {}});
    ASSERT_TRUE(file->AppendGates(gates).ok());
  }
  MetricsTail tail(path);
  ASSERT_TRUE(tail.Read().ok());
  const RunHistory& h = tail.history();
  EXPECT_EQ(h.num_lines, 8);
  EXPECT_EQ(h.num_not_understood, 0);
  EXPECT_EQ(h.last_step, 2);
  EXPECT_EQ(h.tokens, 20);
  EXPECT_EQ(h.loss.buckets()[0].sum, 3.25);
  EXPECT_EQ(h.loss.buckets()[1].num_non_finite, 1);
  EXPECT_EQ(h.step_tokens.buckets()[1].sum, 10);
  EXPECT_EQ(h.data_wait.buckets()[1].sum, 1);
  EXPECT_EQ(h.communication.buckets()[1].sum, 0.5);
  EXPECT_EQ(h.checkpoint_stall.buckets()[1].sum, 0.25);
  EXPECT_EQ(h.skipped.items(), std::vector<int64_t>{2});
  EXPECT_EQ(h.memory.buckets()[0].sum, 123456);
  EXPECT_EQ(h.mfu.buckets()[0].sum, 0.4);
  EXPECT_EQ(h.ranks.num_ranks, 4);
  ASSERT_EQ(h.ranks.worst.size(), 1u);
  EXPECT_EQ(h.ranks.worst[0].host, "n3");
  EXPECT_EQ(h.chronic.at(3).percent_over, 50);
  EXPECT_EQ(h.last_validation, 2.5);
  EXPECT_EQ(h.source_entropy, 1.25);
  EXPECT_EQ(h.samples.items()[0].text, "text");
  EXPECT_EQ(h.checkpoint_outcomes.at("saved"), 1);
  EXPECT_EQ(h.failures[0].message, "full");
  EXPECT_EQ(h.spikes.items(), std::vector<int64_t>{2});
  ASSERT_EQ(h.gates.size(), 1u);
  EXPECT_TRUE(h.gates[0].slstm);
  EXPECT_EQ(h.gates[0].input.mean.buckets()[0].sum, -1);
}

TEST(RunHistory, LinesThatAreNotOursAreCountedAndLeftOut) {
  RunHistory h;
  for (const char* line : {"", "x", "[1]", "{\"step\":", "{\"step\":\"x\"}", "{\"step\":-1}",
                           "{\"step\":1.5}", "{\"step\":1e300}", "{\"step\":3,}", "\xff\xfe"}) {
    h.AddLine(line);
  }
  EXPECT_EQ(h.num_not_understood, 10);
  for (const char* line :
       {"{\"evaluation\":7}", "{\"sample\":{\"step\":\"x\",\"text\":4}}", "{\"checkpoint\":{}}",
        "{\"gates\":{\"step\":1,\"blocks\":[1,null,{\"input\":3}]}}", "{\"health\":{\"kind\":[]}}",
        "{\"step\":1,\"ranks\":{\"worst\":[1,{\"rank\":\"x\"}],\"chronic\":{}}}", "{\"note\":1}"}) {
    h.AddLine(line);
  }
  EXPECT_EQ(h.last_step, 1);
  ExpectOnlyOwnHtml(Render(h));
}

TEST(RunHistory, TheFastReaderAgreesWithTheGeneralOne) {
  RunHistory fast, general;
  for (int64_t step = 1; step <= 500; ++step) {
    const std::string line = StepLine(step, 1.0 / static_cast<double>(step),
                                      step % 7 == 0 ? ",\"memory_bytes\":77,\"mfu\":null" : "");
    fast.AddLine(line);
    general.AddLine(" " + line);  // the space sends it to the general one
  }
  EXPECT_EQ(Render(fast), Render(general));
  EXPECT_EQ(fast.last_step, 500);
}

TEST(MetricsTail, TakesInWhatIsAppendedAndStartsAnewWhenTheFileWasReplaced) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  MetricsTail tail(path);
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().num_lines, 0);
  Write(path, StepLine(1, 3) + "\n" + StepLine(2, 2).substr(0, 30));  // a write in progress
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 1);
  std::ofstream(path, std::ios::app) << StepLine(2, 2).substr(30) << "\n" << StepLine(3, 1) << "\n";
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().last_step, 3);
  EXPECT_EQ(tail.history().num_lines, 3);
  Write(path + ".new",
        StepLine(1, 3) + "\n" + StepLine(2, 9) + "\n" + StepLine(3, 9) + "\n" + StepLine(4, 9) + "\n");
  std::filesystem::rename(path + ".new", path);
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().num_lines, 4);
  EXPECT_EQ(tail.history().last_loss, 9);
  Write(path, "");
  ASSERT_TRUE(tail.Read().ok());
  EXPECT_EQ(tail.history().num_lines, 0);
}

// ---- the page

TEST(HtmlReport, IsWholeForARunWithoutAnything) {
  const std::string page = Render(RunHistory());
  EXPECT_EQ(page.find("<!DOCTYPE html>"), 0u);
  EXPECT_NE(page.find("nothing yet"), std::string::npos);
  EXPECT_NE(page.find("not started"), std::string::npos);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, AsksNobodyForAnythingAndAllowsItsOwnScriptOnly) {
  RunHistory h;
  for (int64_t step = 1; step <= 50; ++step) h.AddLine(StepLine(step, 2));
  const std::string page = Render(h);
  EXPECT_NE(page.find("http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src "
                      "'unsafe-inline'; script-src 'sha256-"),
            std::string::npos);
  std::string without = std::regex_replace(page, std::regex("http://www\\.w3\\.org/2000/svg"), "");
  for (const char* address : {"http:", "https:", "//cdn", "src=\"", "@import", "url("}) {
    EXPECT_EQ(without.find(address), std::string::npos) << address;
  }
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, NothingFromOutsideBecomesHtml) {
  const std::string evil =
      "</pre></script><script>alert(1)</script><img src=x onerror=alert(1)>\"' onload=\"x\" "
      "&amp;<!--\x01\xff\xc2\x85";
  RunHistory h;
  const auto add = [&](const nlohmann::json& line) {
    h.AddLine(line.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  };
  h.AddLine(StepLine(1, 2));
  add({{"step", 2},
       {"loss", 2},
       {"seconds", 1},
       {"ranks",
        {{"num_ranks", 2},
         {"num_steps", 3},
         {"worst", {{{"rank", 1}, {"host", evil}, {"percent_over", 9}}}},
         {"chronic", {{{"rank", 1}, {"host", evil}, {"percent_over", 9}}}}}}});
  add({{"sample", {{"step", 2}, {"text", evil}}}});
  add({{"checkpoint", {{"step", 2}, {"outcome", evil}, {"message", evil}}}});
  add({{"health", {{"step", 2}, {"kind", evil}, {"message", evil}}}});
  ReportInput input = {.run_dir = evil};
  RecordedStart start;
  start.start = {.hosts = {evil}, .mesh = evil, .device = evil, .build = evil, .command = evil};
  start.ended = true;
  start.why = evil;
  input.starts = {start};
  input.attempts = {{.attempt = 1, .reason = evil, .host = evil, .next = evil}};
  input.config = {{evil, evil}, {"a", evil}};
  input.default_config = {{"a", "<b>"}};
  const std::string page = Render(h, input);
  EXPECT_EQ(page.find("<img"), std::string::npos);
  EXPECT_EQ(page.find("alert(1)</script>"), std::string::npos);
  EXPECT_GT(Count(page, "&lt;script&gt;alert(1)&lt;/script&gt;"), 10);
  EXPECT_EQ(page.find('\x01'), std::string::npos);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, IsSmallAndShowsASpikeAmongMillionsOfSteps) {
  RunHistory h;
  constexpr int64_t kSteps = 1'000'000;
  for (int64_t step = 1; step <= kSteps; ++step) {
    h.AddLine(StepLine(step, step == 654'321 ? 50 : 3));
    if (step % 10'000 == 0) {
      h.AddLine(absl::StrCat("{\"sample\":{\"step\":", step, ",\"text\":\"", std::string(6000, 'x'), "\"}}"));
      h.AddLine(absl::StrCat("{\"evaluation\":{\"step\":", step, ",\"loss\":3}}"));
      h.AddLine(absl::StrCat("{\"checkpoint\":{\"step\":", step,
                             ",\"outcome\":\"saved\",\"seconds\":1,\"bytes\":1}}"));
      h.AddLine(absl::StrCat("{\"health\":{\"step\":", step, ",\"kind\":\"spike\",\"message\":\"m\"}}"));
    }
  }
  const std::string page = Render(h);
  EXPECT_LT(page.size(), size_t{1} << 20);
  EXPECT_NE(page.find("1,000,000"), std::string::npos);
  // Far outside: cut at the border, where a triangle tells its value.
  EXPECT_TRUE(std::regex_search(page, std::regex("class=\"cut\"[^>]*><title>step 65[0-9],[0-9]{3}: 50<")));
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, DrawsReferenceLinesEventsAndDifferencesFromDefaults) {
  RunHistory h;
  for (int64_t step = 1; step <= 100; ++step)
    h.AddLine(StepLine(step, 5.0 - 0.04 * static_cast<double>(step)));
  h.AddLine("{\"evaluation\":{\"step\":50,\"loss\":3.1,\"source_entropy\":1.0}}");
  h.AddLine("{\"evaluation\":{\"step\":100,\"loss\":1.4,\"source_entropy\":1.0}}");
  h.AddLine("{\"checkpoint\":{\"step\":80,\"outcome\":\"saved\",\"seconds\":1}}");
  h.AddLine(
      "{\"gates\":{\"step\":100,\"blocks\":[{\"block\":0,\"cell\":\"mLSTM\",\"input\":{\"mean\":-9,\"min\":-"
      "10,\"max\":-8,\"beyond\":0.1},\"forget\":{\"mean\":4}}]}}");
  ReportInput input = {.run_dir = "runs/x"};
  RecordedStart start;
  start.start = {.attempt = 1,
                 .total_steps = 200,
                 .num_ranks = 2,
                 .hosts = {"n1"},
                 .mesh = "replicate 2",
                 .device = "cpu",
                 .vocab_size = 64,
                 .unigram_entropy = 2.9};
  RecordedStart second = start;
  second.start.attempt = 2;
  second.start.step = 60;
  input.starts = {start, second};
  input.config = {{"model.num_blocks", "4"}, {"train.steps", "200"}};
  input.default_config = {{"model.num_blocks", "4"}, {"train.steps", "1000"}};
  const std::string page = Render(h, input);
  for (const char* text :
       {"entropy of the source 1.0000", "single tokens 2.9000", "guessing 4.1589", "checkpoint of step 80",
        "start 2 went on from step 60", "data-name=\"validation\"", "Input gate, mean",
        "class=\"set\"><code>train.steps</code>", "<s>1000</s>", "replicate 2", "no orderly end"}) {
    EXPECT_NE(page.find(text), std::string::npos) << text;
  }
  EXPECT_EQ(Count(page, "class=\"set\""), 1);
  ExpectOnlyOwnHtml(page);
}

TEST(HtmlReport, AJsonFileAndAConfigMakeItLaterToo) {
  const TempDir dir;
  EXPECT_TRUE(absl::IsNotFound(WriteReport(dir.path(), dir.path() + "/r.html")));
  Write(dir.path() + "/config.textproto", "train {\n  steps: 7\n}\n");
  ASSERT_TRUE(WriteReport(dir.path(), dir.path() + "/r.html").ok());
  Write(dir.path() + "/metrics.jsonl", StepLine(1, 3) + "\n");
  ASSERT_TRUE(WriteReport(dir.path(), dir.path() + "/r.html").ok());
  EXPECT_NE(Read(dir.path() + "/r.html").find("train.steps"), std::string::npos);
  const absl::Status status = WriteReport(dir.path(), "/nonexistent/r.html");
  EXPECT_NE(std::string(status.message()).find("/nonexistent/r.html"), std::string::npos);
}

TEST(HtmlReport, KnowsTheDefaultsOfAConfig) {
  const std::string text = DefaultConfigText(
      "model {\n  family: XLSTM_LARGE\n  embedding_dim: 64\n  num_blocks: 2\n  num_heads: 2\n}\ndata {\n  "
      "tokenizer: BYTES\n}\ntrain {\n  steps: 7\n}\n");
  EXPECT_NE(text.find("steps: 1000"), std::string::npos) << text;
  EXPECT_EQ(DefaultConfigText("nonsense"), "");
}

// ---- the sink

TEST(HtmlReportSink, KeepsThePageUpToDateWhileARunGoesOnAndSaysHowItEnded) {
  const TempDir dir;
  const std::string metrics = dir.path() + "/metrics.jsonl", page = ReportPath(dir.path());
  Write(metrics, StepLine(1, 3) + "\n");
  HtmlReportSink sink(dir.path(), true, 0.05);
  ASSERT_TRUE(sink.Start({.attempt = 1, .total_steps = 10, .unix_seconds = 1e9}).ok());
  const auto wait_for = [&](const std::string& text) {
    for (int i = 0; i < 600; ++i) {
      if (Read(page).find(text) != std::string::npos) return true;
      std::this_thread::sleep_for(std::chrono::milliseconds(50));
    }
    return false;
  };
  EXPECT_TRUE(wait_for("running"));
  EXPECT_TRUE(wait_for("http-equiv=\"refresh\""));
  std::ofstream(metrics, std::ios::app) << StepLine(2, 3) << "\n" << StepLine(3, 3) << "\n";
  EXPECT_TRUE(wait_for("of 10, 30.0 %"));
  ASSERT_TRUE(sink.End(3, "stopped by a signal").ok());
  EXPECT_NE(Read(page).find("stopped by a signal"), std::string::npos);
  EXPECT_EQ(Read(page).find("http-equiv=\"refresh\""), std::string::npos);
  const std::vector<RecordedStart> starts = ReadRunStarts(dir.path());
  ASSERT_EQ(starts.size(), 1u);
  EXPECT_TRUE(starts[0].ended);
  EXPECT_EQ(starts[0].end_step, 3);
  // Nothing but whole files.
  for (const auto& entry : std::filesystem::directory_iterator(dir.path())) {
    EXPECT_EQ(entry.path().string().find(".tmp"), std::string::npos) << entry.path();
  }
}

TEST(RunStarts, AreReadBackAndSurviveWhatIsNotTheirs) {
  const TempDir dir;
  EXPECT_TRUE(ReadRunStarts(dir.path()).empty());
  ASSERT_TRUE(RecordRunStart(dir.path(), {.attempt = 1, .hosts = {"a", "b"}, .command = "x\"y"}).ok());
  std::ofstream(StartsPath(dir.path()), std::ios::app)
      << "garbage\n{\"end\":{\"attempt\":9}}\n[]\n{\"start\":3}\n";
  ASSERT_TRUE(RecordRunEnd(dir.path(), 1, 5, "failed: \xff", 2e9).ok());
  ASSERT_TRUE(RecordRunStart(dir.path(), {.attempt = 2, .step = 5}).ok());
  const std::vector<RecordedStart> starts = ReadRunStarts(dir.path());
  ASSERT_EQ(starts.size(), 2u);
  EXPECT_EQ(starts[0].start.hosts, (std::vector<std::string>{"a", "b"}));
  EXPECT_EQ(starts[0].start.command, "x\"y");
  EXPECT_EQ(starts[0].end_step, 5);
  EXPECT_FALSE(starts[1].ended);
  std::filesystem::create_directories(dir.path() + "/attempts/10");
  std::filesystem::create_directories(dir.path() + "/attempts/9");
  std::filesystem::create_directories(dir.path() + "/attempts/x");
  Write(dir.path() + "/attempts/10/exit.json",
        "{\"exit_code\":71,\"reason\":\"hang\",\"rank\":3,\"host\":\"n\",\"step\":7}");
  Write(dir.path() + "/attempts/9/exit.json", "not json");
  const std::vector<RecordedAttempt> attempts = ReadAttempts(dir.path());
  ASSERT_EQ(attempts.size(), 1u);
  EXPECT_EQ(attempts[0].attempt, 10);
  EXPECT_EQ(attempts[0].exit_code, 71);
  EXPECT_EQ(attempts[0].rank, 3);
}

TEST(EscapedHtml, LeavesNothingThatMeansSomething) {
  EXPECT_EQ(EscapedHtml("<a b=\"c\">&'\t\n"), "&lt;a b=&quot;c&quot;&gt;&amp;&#39;\t\n");
  EXPECT_EQ(EscapedHtml(std::string("\0\x1b\x7f", 3)), "\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd");
  EXPECT_EQ(EscapedHtml("\xc2\x9b\xc3\xa9\xff"), "\xef\xbf\xbd\xc3\xa9\xef\xbf\xbd");
}

TEST(ShortNumber, HasFewDigits) {
  EXPECT_EQ(ShortNumber(0), "0");
  EXPECT_EQ(ShortNumber(2.71828), "2.718");
  EXPECT_EQ(ShortNumber(12345), "12.35k");
  EXPECT_EQ(ShortNumber(3e6), "3M");
  EXPECT_EQ(ShortNumber(1e-5), "1e-05");
  EXPECT_EQ(ShortNumber(std::nan("")), "-");
  EXPECT_EQ(Thousands(1234567), "1,234,567");
  EXPECT_EQ(Thousands(-1234), "-1,234");
  EXPECT_EQ(Thousands(999), "999");
}
}  // namespace
}  // namespace carousel

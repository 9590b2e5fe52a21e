// What people and metrics.jsonl are told about an evaluation.
#include "launcher/report/evaluation_report.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "launcher/report/metrics_file.h"
#include "tests/temp_dir.h"

namespace carousel {
namespace {

EvaluationReport Task() {
  return {.step = 500,
          .loss = 0.25,
          .num_targets = 300,
          .accuracy = 0.75,
          .bits_per_byte = std::nan(""),
          .by_length = {{.first = 40, .last = 59, .count = 200, .correct = 190},
                        {.first = 60, .last = 60, .count = 100, .correct = 35}},
          .chance = 0.5025,
          .seconds = 3.14};
}

EvaluationReport Text() {
  return {
      .step = 100, .loss = 1.5, .num_targets = 65536, .accuracy = 0.5, .bits_per_byte = 2.164, .seconds = 2};
}

TEST(EvaluationReport, SaysWhatFitsTheData) {
  EXPECT_EQ(FormatEvaluation(Task()),
            "step 500  validation loss 0.2500 nats/answer, accuracy 0.7500 (300 answers, 3.1 s)");
  EXPECT_EQ(FormatEvaluation(Text()),
            "step 100  validation loss 1.5000 nats/token, 2.1640 bits/byte (65536 tokens, 2.0 s)");
  EvaluationReport known = Text();
  known.source_entropy = 1.25;
  EXPECT_EQ(FormatEvaluation(known),
            "step 100  validation loss 1.5000 nats/token, 2.1640 bits/byte, the source's entropy 1.2500 "
            "nats/token +20.00 % (65536 tokens, 2.0 s)");
  known.loss = 1.24;
  EXPECT_NE(FormatEvaluation(known).find("-0.80 %"), std::string::npos);
}

TEST(EvaluationReport, TheTableHasARowPerRangeAndOneForAll) {
  EXPECT_EQ(FormatAccuracyTable(Task()),
            "accuracy by length of the problem at step 500 (always the most frequent answer: 0.5025)\n"
            "       length    answers  accuracy\n"
            "        40-59        200    0.9500\n"
            "           60        100    0.3500\n"
            "          all        300    0.7500");
  EXPECT_EQ(FormatAccuracyTable(Text()), "");
}

TEST(EvaluationReport, StandsInTheMetricsByLength) {
  const TempDir dir;
  const std::string path = dir.path() + "/metrics.jsonl";
  {
    const auto file = MetricsFile::Open(path, 0);
    ASSERT_TRUE(file.ok()) << file.status();
    ASSERT_TRUE((*file)->AppendEvaluation(Text()).ok());
    ASSERT_TRUE((*file)->AppendEvaluation(Task()).ok());
    EvaluationReport known = Text();
    known.step = 600;
    known.source_entropy = 1.25;
    ASSERT_TRUE((*file)->AppendEvaluation(known).ok());
  }
  std::ifstream in(path);
  std::vector<nlohmann::json> found;
  for (std::string line; std::getline(in, line);) found.push_back(nlohmann::json::parse(line)["evaluation"]);
  ASSERT_EQ(found.size(), 3u);
  EXPECT_EQ(found[0]["accuracy"], 0.5);
  EXPECT_FALSE(found[0].contains("accuracy_by_length"));
  EXPECT_FALSE(found[0].contains("source_entropy"));
  EXPECT_EQ(found[1]["accuracy"], 0.75);
  EXPECT_TRUE(found[1]["bits_per_byte"].is_null());
  EXPECT_EQ(found[1]["accuracy_by_length"],
            nlohmann::json::parse(R"([{"length_from":40,"length_to":59,"count":200,"accuracy":0.95},
                                      {"length_from":60,"length_to":60,"count":100,"accuracy":0.35}])"));
  EXPECT_EQ(found[2]["source_entropy"], 1.25);
  EXPECT_NEAR(found[2]["excess_percent"].get<double>(), 20, 1e-12);
}
}  // namespace
}  // namespace carousel

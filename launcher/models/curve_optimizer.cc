#include "launcher/models/curve_optimizer.h"

#include <cmath>
#include <regex>
#include <vector>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
constexpr const char* kNumber = R"(([0-9]*\.?[0-9]+(?:e[-+]?[0-9]+)?|[0-9]+\.))";

// A text whose known phrases are taken away one by one.
class Phrases {
 public:
  explicit Phrases(const std::string& text) : rest_(absl::AsciiStrToLower(text)) {}

  // Takes the first match of `pattern` away; false if there is none. Its groups that are numbers go to
  // `numbers`.
  bool Take(const std::string& pattern, std::vector<double>* numbers = nullptr) {
    std::smatch match;
    if (!std::regex_search(rest_, match, std::regex(pattern))) return false;
    for (size_t group = 1; numbers != nullptr && group < match.size(); ++group) {
      double value = 0;
      if (absl::SimpleAtod(match[group].str(), &value)) numbers->push_back(value);
    }
    // Something stays in its place: words on both sides must not become one phrase.
    rest_ = absl::StrCat(match.prefix().str(), ";", match.suffix().str());
    return true;
  }
  // The first words that are left.
  std::string Rest() const {
    std::smatch match;
    return std::regex_search(rest_, match, std::regex(R"([^\s,;.()\[\]][^,;]*)")) ? match.str() : "";
  }

 private:
  std::string rest_;
};
}  // namespace

absl::StatusOr<CurveOptimizer> ReadCurveOptimizer(const ReferenceDump& dump) {
  const std::string text = dump.Field("optimizer", "");
  if (text.empty()) return dump.Invalid("metadata field \"optimizer\" is missing");
  if (text.size() > 2000) return dump.Invalid("metadata field \"optimizer\" has more than 2000 characters");
  const auto refuse = [&](const std::string& what) {
    return dump.Invalid(absl::StrCat("metadata field \"optimizer\" is \"", text, "\"; ", what));
  };
  const std::string is = R"(\s*[:=]?\s*)", number = kNumber;
  Phrases phrases(text);
  CurveOptimizer result;
  AdamWSpec& adamw = result.adamw;
  if (!phrases.Take(R"(\badamw\b)")) return refuse("only AdamW is in this version");
  std::vector<double> numbers;
  const std::string open = R"([\[\(]?\s*)", close = R"(\s*[\]\)]?)";
  if (!phrases.Take("betas" + is + open + number + R"(\s*[\s,/]\s*)" + number + close, &numbers)) {
    return refuse("it does not say \"betas B1 B2\"");
  }
  if (!phrases.Take(R"(\beps)" + is + number, &numbers)) return refuse("it does not say \"eps E\"");
  adamw.beta1 = numbers[0], adamw.beta2 = numbers[1], adamw.eps = numbers[2];
  if (adamw.beta1 >= 1 || adamw.beta2 >= 1) return refuse("betas must be below 1");

  adamw.weight_decay = 0;
  numbers.clear();
  if (!phrases.Take(R"(\bno weight decay)")) {
    if (!phrases.Take(R"((?:decoupled )?weight decay)" + is + number, &numbers)) {
      return refuse(
          "it says neither \"weight decay W on tensors of 2 or more dims\" nor \"no weight decay\"");
    }
    adamw.weight_decay = numbers[0];
    result.decay_all = phrases.Take(R"(on all (?:tensors|parameters))");
    if (!result.decay_all && !phrases.Take(R"(on tensors of 2 or more dims(?:,? none on 1-d)?)") &&
        adamw.weight_decay > 0) {
      return refuse("weight decay must be \"on tensors of 2 or more dims\" or \"on all tensors\"");
    }
  }
  adamw.clip_norm = 0;
  numbers.clear();
  if (!phrases.Take(R"(\bno (?:gradient )?clip(?:ping)?)") &&
      phrases.Take(
          R"((?:global[- ]norm |gradient[- ]norm |gradient )?clip(?:ping)?(?: at| to)?)" + is + number,
          &numbers)) {
    adamw.clip_norm = numbers[0];
  }
  // What is as it is here.
  for (const char* phrase : {R"(\blr per step in lrs)", R"(\bno dropout)", R"(\binput tokens\[s,:,:-1\])",
                             R"(\btargets? tokens\[s,:,1:\])"}) {
    phrases.Take(phrase);
  }
  const std::string rest = phrases.Rest();
  if (!rest.empty()) return refuse(absl::StrCat("\"", rest, "\" is not known and cannot be honoured"));
  return result;
}
}  // namespace carousel

#include "core/data/json_lines.h"

#include <algorithm>
#include <cstdint>
#include <nlohmann/json.hpp>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

// Follows the parser and keeps one field of the outermost object; builds no tree.
class FieldReader : public nlohmann::json_sax<Json> {
 public:
  FieldReader(const std::string& field, std::string* text) : field_(field), text_(text) {}

  bool null() override { return Value("null"); }
  bool boolean(bool) override { return Value("a boolean"); }
  bool number_integer(number_integer_t) override { return Value("a number"); }
  bool number_unsigned(number_unsigned_t) override { return Value("a number"); }
  bool number_float(number_float_t, const string_t&) override { return Value("a number"); }
  bool binary(binary_t&) override { return Value("binary"); }
  bool string(string_t& value) override {
    if (Wanted()) text_->swap(value);
    return Value("a string");
  }
  bool start_object(std::size_t) override {
    if (depth_ == 0) is_object_ = true;
    Value("an object");
    ++depth_;
    return true;
  }
  bool start_array(std::size_t) override {
    Value("an array");
    ++depth_;
    return true;
  }
  bool end_object() override { return End(); }
  bool end_array() override { return End(); }
  bool key(string_t& name) override {
    if (depth_ == 1) {
      here_ = name == field_;
      if (!here_ && names_.size() < 8) names_.push_back(name);
    }
    return true;
  }
  bool parse_error(std::size_t position, const std::string&, const Json::exception& error) override {
    // "[json.exception.parse_error.101] parse error at line 1, column 5: syntax error while ..."
    const std::string what = error.what();
    const size_t colon = what.find(": ");
    problem_ = absl::StrCat("not valid JSON at column ", position, ": ",
                            colon == std::string::npos ? what : what.substr(colon + 2),
                            "; every line must be one JSON object (--format txt reads plain text)");
    return false;
  }

  absl::Status Result() const {
    if (!problem_.empty()) return absl::InvalidArgumentError(problem_);
    if (!is_object_) return absl::InvalidArgumentError("the line is not a JSON object");
    if (kind_.empty()) {
      return absl::InvalidArgumentError(absl::StrCat(
          "no field \"", field_, "\"",
          names_.empty() ? "; the object is empty"
                         : absl::StrCat("; there is \"", absl::StrJoin(names_, "\", \""),
                                        "\": name the one that holds the text with --text_field")));
    }
    if (kind_ != "a string") {
      return absl::InvalidArgumentError(absl::StrCat("field \"", field_, "\" is ", kind_,
                                                     ", not a string; "
                                                     "name the one that holds the text with --text_field"));
    }
    return absl::OkStatus();
  }

 private:
  bool Wanted() const { return depth_ == 1 && is_object_ && here_; }
  bool Value(const char* kind) {
    if (Wanted()) {
      kind_ = kind;
      here_ = false;
    }
    return true;
  }
  bool End() {
    --depth_;
    return true;
  }

  const std::string& field_;
  std::string* const text_;
  int64_t depth_ = 0;
  bool is_object_ = false, here_ = false;  // here_: the next value of depth 1 is the field's
  std::string kind_, problem_;
  std::vector<std::string> names_;
};
}  // namespace

absl::Status ReadJsonTextField(absl::string_view line, const std::string& field, std::string* text) {
  text->clear();
  FieldReader reader(field, text);
  Json::sax_parse(line.begin(), line.end(), &reader);
  return reader.Result();
}
}  // namespace carousel

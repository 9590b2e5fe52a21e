#include "checkpoints/yaml_fields.h"

#include <yaml.h>

#include <algorithm>
#include <cctype>
#include <cstdint>
#include <initializer_list>
#include <utility>

#include "absl/strings/ascii.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/string_view.h"
#include "core/base/check.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

// One of the words in lower case, with a capital, or in capitals.
bool IsWord(const std::string& text, std::initializer_list<const char*> words) {
  const std::string lower = absl::AsciiStrToLower(text);
  std::string capital = lower;
  if (!capital.empty()) capital[0] = absl::ascii_toupper(static_cast<unsigned char>(capital[0]));
  if (text != lower && text != capital && text != absl::AsciiStrToUpper(text)) return false;
  return std::any_of(words.begin(), words.end(), [&](const char* word) { return lower == word; });
}

// [-+]? digits; no zero before other digits.
bool IsInteger(absl::string_view text) {
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  if (text.empty() || (text.size() > 1 && text[0] == '0')) return false;
  return std::all_of(text.begin(), text.end(), [](unsigned char c) { return absl::ascii_isdigit(c); });
}

// [-+]? digits with a point or an exponent or both; at least one digit before the exponent.
bool IsFloat(absl::string_view text) {
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  const auto digits = [&] {
    size_t n = 0;
    while (n < text.size() && absl::ascii_isdigit(static_cast<unsigned char>(text[n]))) ++n;
    text.remove_prefix(n);
    return n;
  };
  const size_t whole = digits();
  bool fractional = false;
  size_t fraction = 0;
  if (!text.empty() && text[0] == '.') {
    fractional = true;
    text.remove_prefix(1);
    fraction = digits();
  }
  if (whole + fraction == 0) return false;
  if (text.empty()) return fractional;
  if (text[0] != 'e' && text[0] != 'E') return false;
  text.remove_prefix(1);
  if (!text.empty() && (text[0] == '-' || text[0] == '+')) text.remove_prefix(1);
  return digits() > 0 && text.empty();
}

Json PlainScalar(const std::string& text) {
  if (text.empty() || text == "~" || IsWord(text, {"null"})) return nullptr;
  if (IsWord(text, {"true", "yes", "on"})) return true;
  if (IsWord(text, {"false", "no", "off"})) return false;
  if (int64_t integer = 0; IsInteger(text) && absl::SimpleAtoi(text, &integer)) return integer;
  if (double number = 0; (IsInteger(text) || IsFloat(text)) && absl::SimpleAtod(text, &number)) return number;
  return text;
}

// libyaml's parser with its one event. Both are freed whatever happens.
class Parser {
 public:
  Parser(const std::string& text, const std::string& file) : file_(file) {
    CAROUSEL_CHECK_MSG(yaml_parser_initialize(&parser_) != 0, "out of memory");
    yaml_parser_set_encoding(&parser_, YAML_UTF8_ENCODING);
    yaml_parser_set_input_string(&parser_, reinterpret_cast<const unsigned char*>(text.data()), text.size());
  }
  ~Parser() {
    yaml_event_delete(&event_);
    yaml_parser_delete(&parser_);
  }
  Parser(const Parser&) = delete;
  Parser& operator=(const Parser&) = delete;

  absl::StatusOr<Json> Document();

 private:
  absl::Status Next();
  absl::Status Expect(yaml_event_type_t type, const char* what);
  // What the current event begins; afterwards the current event is its last.
  absl::StatusOr<Json> Value(int depth);
  absl::StatusOr<Json> Mapping(int depth);
  absl::StatusOr<Json> Sequence(int depth);
  absl::Status CheckPlain(const unsigned char* anchor, const unsigned char* tag) const;
  absl::Status Problem(const yaml_mark_t& at, absl::string_view what) const {
    return absl::InvalidArgumentError(absl::StrCat(file_, ":", at.line + 1, ":", at.column + 1, ": ", what));
  }
  absl::Status Problem(absl::string_view what) const { return Problem(event_.start_mark, what); }

  const std::string& file_;
  yaml_parser_t parser_;
  yaml_event_t event_ = {};
  int num_values_ = 0;
};

absl::Status Parser::Next() {
  yaml_event_delete(&event_);
  event_ = {};
  if (yaml_parser_parse(&parser_, &event_) != 0) return absl::OkStatus();
  event_ = {};
  CAROUSEL_CHECK_MSG(parser_.error != YAML_MEMORY_ERROR, "out of memory");
  const char* problem = parser_.problem != nullptr ? parser_.problem : "unreadable";
  if (parser_.error == YAML_READER_ERROR) {
    return absl::InvalidArgumentError(
        absl::StrCat(file_, ": not valid YAML: ", problem, " at byte ", parser_.problem_offset));
  }
  return Problem(parser_.problem_mark, absl::StrCat("not valid YAML: ", problem));
}

absl::Status Parser::Expect(yaml_event_type_t type, const char* what) {
  CAROUSEL_RETURN_IF_ERROR(Next());
  return event_.type == type ? absl::OkStatus() : Problem(what);
}

absl::Status Parser::CheckPlain(const unsigned char* anchor, const unsigned char* tag) const {
  if (anchor != nullptr) return Problem("anchors and aliases are not read; write the value itself");
  if (tag != nullptr) return Problem("tags are not read; leave the tag out");
  return absl::OkStatus();
}

absl::StatusOr<Json> Parser::Value(int depth) {
  if (++num_values_ > kMaxYamlValues) {
    return Problem(absl::StrCat("more than ", kMaxYamlValues, " values; a model's config has fewer"));
  }
  if (depth > kMaxYamlDepth) return Problem(absl::StrCat("nested deeper than ", kMaxYamlDepth));
  switch (event_.type) {
    case YAML_SCALAR_EVENT: {
      const auto& scalar = event_.data.scalar;
      CAROUSEL_RETURN_IF_ERROR(CheckPlain(scalar.anchor, scalar.tag));
      const std::string text(reinterpret_cast<const char*>(scalar.value), scalar.length);
      return scalar.style == YAML_PLAIN_SCALAR_STYLE ? PlainScalar(text) : Json(text);
    }
    case YAML_MAPPING_START_EVENT:
      CAROUSEL_RETURN_IF_ERROR(CheckPlain(event_.data.mapping_start.anchor, event_.data.mapping_start.tag));
      return Mapping(depth);
    case YAML_SEQUENCE_START_EVENT:
      CAROUSEL_RETURN_IF_ERROR(CheckPlain(event_.data.sequence_start.anchor, event_.data.sequence_start.tag));
      return Sequence(depth);
    case YAML_ALIAS_EVENT:
      return Problem("anchors and aliases are not read; write the value itself");
    default:
      return Problem("a value is missing");
  }
}

absl::StatusOr<Json> Parser::Mapping(int depth) {
  Json object = Json::object();
  while (true) {
    CAROUSEL_RETURN_IF_ERROR(Next());
    if (event_.type == YAML_MAPPING_END_EVENT) return object;
    if (event_.type != YAML_SCALAR_EVENT) return Problem("a key that is not a plain name");
    CAROUSEL_RETURN_IF_ERROR(CheckPlain(event_.data.scalar.anchor, event_.data.scalar.tag));
    const std::string key(reinterpret_cast<const char*>(event_.data.scalar.value), event_.data.scalar.length);
    if (object.contains(key)) return Problem(absl::StrCat("\"", key, "\" is there twice"));
    CAROUSEL_RETURN_IF_ERROR(Next());
    CAROUSEL_ASSIGN_OR_RETURN(object[key], Value(depth + 1));
  }
}

absl::StatusOr<Json> Parser::Sequence(int depth) {
  Json list = Json::array();
  while (true) {
    CAROUSEL_RETURN_IF_ERROR(Next());
    if (event_.type == YAML_SEQUENCE_END_EVENT) return list;
    CAROUSEL_ASSIGN_OR_RETURN(Json value, Value(depth + 1));
    list.push_back(std::move(value));
  }
}

absl::StatusOr<Json> Parser::Document() {
  CAROUSEL_RETURN_IF_ERROR(Expect(YAML_STREAM_START_EVENT, "not a YAML stream"));
  CAROUSEL_RETURN_IF_ERROR(Expect(YAML_DOCUMENT_START_EVENT, "the file is empty"));
  CAROUSEL_RETURN_IF_ERROR(Expect(YAML_MAPPING_START_EVENT, "not a mapping of names to values"));
  CAROUSEL_ASSIGN_OR_RETURN(Json object, Value(1));
  CAROUSEL_RETURN_IF_ERROR(Expect(YAML_DOCUMENT_END_EVENT, "something stands behind the mapping"));
  CAROUSEL_RETURN_IF_ERROR(Expect(YAML_STREAM_END_EVENT, "a second document; one is expected"));
  return object;
}

// A double that YAML 1.1 takes for one needs a point, and a sign in its exponent.
std::string NumberText(const nlohmann::ordered_json& value) {
  std::string text = value.dump();
  if (!value.is_number_float()) return text;
  const size_t e = text.find('e');
  if (e != std::string::npos && text[e + 1] != '-' && text[e + 1] != '+') text.insert(e + 1, "+");
  if (text.find('.') == std::string::npos) text.insert(e == std::string::npos ? text.size() : e, ".0");
  return text;
}
}  // namespace

absl::StatusOr<Json> ParseYamlObject(const std::string& text, const std::string& file) {
  if (text.size() > kMaxYamlBytes) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, " has ", text.size(), " bytes; a model's config has at most ", kMaxYamlBytes));
  }
  return Parser(text, file).Document();
}

std::string YamlText(const nlohmann::ordered_json& object) {
  std::string text;
  for (const auto& [name, value] : object.items()) {
    std::string written;
    if (value.is_string()) {
      written = value.get<std::string>();
      CAROUSEL_CHECK_MSG(
          PlainScalar(written).is_string() && absl::ascii_isalpha(written[0]) &&
              std::all_of(written.begin(), written.end(),
                          [](unsigned char c) { return absl::ascii_isalnum(c) || c == '_' || c == '-'; }),
          absl::StrCat("needs quotes: ", written));
    } else {
      CAROUSEL_CHECK(value.is_primitive());
      written = NumberText(value);
    }
    absl::StrAppend(&text, name, ": ", written, "\n");
  }
  return text;
}
}  // namespace carousel

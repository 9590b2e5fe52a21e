#include "checkpoints/json_fields.h"

#include <algorithm>
#include <cmath>

#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"

namespace carousel {
namespace {
using Json = nlohmann::json;
}  // namespace

absl::StatusOr<Json> ParseJsonObject(const std::string& text, const std::string& file) {
  Json object = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (object.is_discarded())
    return absl::InvalidArgumentError(absl::StrCat(file, ": not valid JSON; copy or download it again"));
  if (!object.is_object()) return absl::InvalidArgumentError(absl::StrCat(file, ": not a JSON object"));
  return object;
}

absl::Status FieldProblems::ToStatus() const {
  if (problems_.empty()) return absl::OkStatus();
  return absl::InvalidArgumentError(absl::StrCat(file_, ": ", absl::StrJoin(problems_, "\n" + file_ + ": ")));
}

bool FieldReader::Bool(const char* name, bool default_value) {
  const Json* value = Get(name);
  if (value == nullptr) return default_value;
  if (value->is_boolean()) return value->get<bool>();
  Problem(name, "it must be true or false");
  return default_value;
}

int64_t FieldReader::Int(const char* name, int64_t default_value, int64_t min, int64_t max) {
  const Json* value = Get(name);
  if (value == nullptr) return default_value;
  // An unsigned number beyond int64 is read as such, and is out of range.
  if (value->is_number_integer() && !(value->is_number_unsigned() && value->get<uint64_t>() > INT64_MAX)) {
    const int64_t number = value->get<int64_t>();
    if (number >= min && number <= max) return number;
  }
  Problem(name, absl::StrCat("it must be an integer from ", min, " to ", max));
  return default_value;
}

int64_t FieldReader::RequiredInt(const char* name, int64_t min, int64_t max) {
  if (!Has(name)) Add(absl::StrCat("field \"", prefix_, name, "\" is missing; it is required"));
  return Int(name, min, min, max);
}

double FieldReader::Positive(const char* name, double default_value) {
  const Json* value = Get(name);
  if (value == nullptr) return default_value;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (std::isfinite(number) && number > 0) return number;
  }
  Problem(name, "it must be a number > 0");
  return default_value;
}

double FieldReader::InRange(const char* name, double default_value, double min, double below) {
  const Json* value = Get(name);
  if (value == nullptr) return default_value;
  if (value->is_number()) {
    const double number = value->get<double>();
    if (number >= min && number < below) return number;
  }
  Problem(name, absl::StrCat("it must be a number from ", min, " to below ", below));
  return default_value;
}

std::string FieldReader::String(const char* name, const std::string& default_value) {
  const Json* value = Get(name);
  if (value == nullptr) return default_value;
  if (value->is_string()) return value->get<std::string>();
  Problem(name, "it must be a string");
  return default_value;
}

std::string FieldReader::OneOf(const char* name, const std::string& default_value,
                               const std::vector<std::string>& allowed) {
  const Json* value = Get(name);
  if (value == nullptr) return default_value;
  if (value->is_string() &&
      std::find(allowed.begin(), allowed.end(), value->get<std::string>()) != allowed.end()) {
    return value->get<std::string>();
  }
  Problem(name, absl::StrCat("it must be one of ", absl::StrJoin(allowed, ", ")));
  return default_value;
}

const Json* FieldReader::Object(const char* name) {
  const Json* value = Get(name);
  if (value == nullptr || value->is_object()) return value;
  Problem(name, "it must be an object or null");
  return nullptr;
}

void FieldReader::Fixed(const FixedField& field) {
  Known(field.name);
  if (object_.contains(field.name) && object_[field.name] != Json::parse(field.value)) {
    Problem(field.name, absl::StrCat("it must be ", field.value, " (", field.what, ": not in this version)"));
  }
}

void FieldReader::Problem(const char* name, const std::string& remedy) {
  std::string value = object_.contains(name)
                          ? object_[name].dump(-1, ' ', true, Json::error_handler_t::replace)
                          : "not given";
  if (value.size() > 80) value = value.substr(0, 77) + "...";
  Add(absl::StrCat("field \"", prefix_, name, "\" is ", value, "; ", remedy));
}

void FieldReader::RefuseOthers(const std::string& ignored_prefix) {
  for (const auto& [name, value] : object_.items()) {
    if (known_.count(name) > 0 || (!ignored_prefix.empty() && absl::StartsWith(name, ignored_prefix)))
      continue;
    Add(absl::StrCat("field \"", prefix_, name,
                     "\" is not known, so what it asks for cannot be honoured; remove it if it does not "
                     "change what the model computes"));
  }
}

const Json* FieldReader::Get(const char* name) {
  Known(name);
  return Has(name) ? &object_[name] : nullptr;
}
}  // namespace carousel

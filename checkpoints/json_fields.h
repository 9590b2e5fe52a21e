// Reading the config.json of a model written by another program: typed fields with ranges, every problem
// collected, none of the fields passed over unseen.
#pragma once
#include <cstdint>
#include <nlohmann/json.hpp>
#include <set>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"

namespace carousel {

// InvalidArgument naming the file if the text is not JSON or not an object.
absl::StatusOr<nlohmann::json> ParseJsonObject(const std::string& text, const std::string& file);

// What is wrong with a file.
class FieldProblems {
 public:
  explicit FieldProblems(std::string file) : file_(std::move(file)) {}
  void Add(const std::string& problem) { problems_.push_back(problem); }
  // OK, or InvalidArgument with one line per problem, each with the file's name.
  absl::Status ToStatus() const;

 private:
  std::string file_;
  std::vector<std::string> problems_;
};

// A field that may have one value only, because another would ask for what this program does not do.
struct FixedField {
  const char* name;
  const char* value;  // JSON
  const char* what;   // what another value would ask for
};

// Reads the fields of one JSON object. A field that is absent or null has its default. A value that is not
// allowed is a problem, and the default is the result.
class FieldReader {
 public:
  // `object` and `problems` must outlive the reader. prefix: put before field names in messages, as "block.".
  FieldReader(const nlohmann::json& object, std::string prefix, FieldProblems* problems)
      : object_(object), prefix_(std::move(prefix)), problems_(*problems) {}

  bool Has(const char* name) const { return object_.contains(name) && !object_[name].is_null(); }
  bool IsNull(const char* name) const { return object_.contains(name) && object_[name].is_null(); }

  bool Bool(const char* name, bool default_value);
  int64_t Int(const char* name, int64_t default_value, int64_t min, int64_t max);
  // A problem if it is missing or null; the result is then `min`.
  int64_t RequiredInt(const char* name, int64_t min, int64_t max);
  double Positive(const char* name, double default_value);
  double InRange(const char* name, double default_value, double min, double below);  // min <= x < below
  std::string String(const char* name, const std::string& default_value);
  // A field that must be one of these strings.
  std::string OneOf(const char* name, const std::string& default_value,
                    const std::vector<std::string>& allowed);
  // A nested object; null if it is absent, null or none (a problem).
  const nlohmann::json* Object(const char* name);
  void Fixed(const FixedField& field);

  // The field needs no look: it does not change what the model computes.
  void Known(const char* name) { known_.insert(name); }
  void Problem(const char* name, const std::string& remedy);
  void Add(const std::string& problem) { problems_.Add(problem); }
  // Every field that was not asked for is a problem, but for those that begin with ignored_prefix (if it is
  // not empty).
  void RefuseOthers(const std::string& ignored_prefix = "");

 private:
  // Null if the field is absent or null.
  const nlohmann::json* Get(const char* name);
  const nlohmann::json& object_;
  std::string prefix_;
  FieldProblems& problems_;
  std::set<std::string> known_;
};
}  // namespace carousel

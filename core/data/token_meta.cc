#include "core/data/token_meta.h"

#include <limits>
#include <nlohmann/json.hpp>

#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::ordered_json;
constexpr char kFormat[] = "carousel token file";
// Version 2 has a task, which a reader of version 1 would pass over: it would train on all tokens.
constexpr int kPlainVersion = 1, kTaskVersion = 2;

absl::Status FieldError(const std::string& path, const char* field, const std::string& wanted) {
  return absl::DataLossError(absl::StrCat(path, ": field \"", field, "\" must be ", wanted,
                                          "; build the file again with `carousel data build`"));
}

absl::StatusOr<std::string> StringField(const Json& json, const char* field, const std::string& path) {
  const auto found = json.find(field);
  if (found == json.end() || !found->is_string()) return FieldError(path, field, "a string");
  return found->get<std::string>();
}

absl::StatusOr<int64_t> CountField(const Json& json, const char* field, int64_t max,
                                   const std::string& path) {
  const auto found = json.find(field);
  // Written without a sign, so an unsigned number; anything else was edited or damaged.
  if (found == json.end() || !found->is_number_unsigned() ||
      found->get<uint64_t>() > static_cast<uint64_t>(max)) {
    return FieldError(path, field, absl::StrCat("an integer from 0 to ", max));
  }
  return static_cast<int64_t>(found->get<uint64_t>());
}

absl::StatusOr<uint32_t> HexField(const Json& json, const char* field, const std::string& path) {
  CAROUSEL_ASSIGN_OR_RETURN(const std::string text, StringField(json, field, path));
  uint32_t value = 0;
  if (text.size() != 8 || text.find_first_not_of("0123456789abcdef") != std::string::npos ||
      !absl::SimpleHexAtoi(text, &value)) {
    return FieldError(path, field, "8 lower-case hexadecimal digits");
  }
  return value;
}

absl::StatusOr<double> NumberField(const Json& json, const char* field, double max, const std::string& path) {
  const auto found = json.find(field);
  // The range is false for what is not a number.
  if (found == json.end() || !found->is_number() || !(found->get<double>() >= 0) ||
      !(found->get<double>() <= max)) {
    return FieldError(path, field, absl::StrCat("a number from 0 to ", max));
  }
  return found->get<double>();
}

Json FormatTask(const TaskMeta& task) {
  Json json;
  json["name"] = task.name;
  json["parameters"] = task.parameters;
  json["num_problems"] = static_cast<uint64_t>(task.num_problems);
  json["row_tokens"] = static_cast<uint64_t>(task.row_tokens);
  json["chance"] = task.chance;
  json["entropy_nats_per_token"] = task.entropy_nats_per_token;
  if (task.labels_crc32c.has_value()) json["labels_crc32c"] = absl::StrFormat("%08x", *task.labels_crc32c);
  return json;
}

absl::StatusOr<TaskMeta> ParseTask(const Json& json, const std::string& path) {
  constexpr int64_t kMaxCount = std::numeric_limits<int64_t>::max();
  constexpr int64_t kMaxRowTokens = int64_t{1} << 30;
  constexpr double kMaxEntropy = 64;  // no vocabulary of 32-bit ids has more nats
  TaskMeta task;
  CAROUSEL_ASSIGN_OR_RETURN(task.name, StringField(json, "name", path));
  CAROUSEL_ASSIGN_OR_RETURN(task.parameters, StringField(json, "parameters", path));
  CAROUSEL_ASSIGN_OR_RETURN(task.num_problems, CountField(json, "num_problems", kMaxCount, path));
  CAROUSEL_ASSIGN_OR_RETURN(task.row_tokens, CountField(json, "row_tokens", kMaxRowTokens, path));
  CAROUSEL_ASSIGN_OR_RETURN(task.chance, NumberField(json, "chance", 1, path));
  CAROUSEL_ASSIGN_OR_RETURN(task.entropy_nats_per_token,
                            NumberField(json, "entropy_nats_per_token", kMaxEntropy, path));
  if (json.contains("labels_crc32c")) {
    CAROUSEL_ASSIGN_OR_RETURN(task.labels_crc32c, HexField(json, "labels_crc32c", path));
  }
  return task;
}
}  // namespace

std::string FormatTokenMeta(const TokenMeta& meta) {
  Json json;
  json["format"] = kFormat;
  json["version"] = meta.task.has_value() ? kTaskVersion : kPlainVersion;
  json["tokenizer"] = meta.tokenizer;
  json["vocab_size"] = static_cast<uint64_t>(meta.vocab_size);
  json["eod_id"] = static_cast<uint64_t>(meta.eod_id);
  json["num_tokens"] = static_cast<uint64_t>(meta.num_tokens);
  json["num_documents"] = static_cast<uint64_t>(meta.num_documents);
  json["text_bytes"] = static_cast<uint64_t>(meta.text_bytes);
  json["bin_crc32c"] = absl::StrFormat("%08x", meta.bin_crc32c);
  json["idx_crc32c"] = absl::StrFormat("%08x", meta.idx_crc32c);
  if (meta.task.has_value()) json["task"] = FormatTask(*meta.task);
  return json.dump(2, ' ', /*ensure_ascii=*/true, Json::error_handler_t::replace) + "\n";
}

absl::StatusOr<TokenMeta> ParseTokenMeta(const std::string& text, const std::string& path) {
  const Json json = Json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (json.is_discarded() || !json.is_object()) {
    return absl::DataLossError(absl::StrCat(path, " is not a JSON object"));
  }
  constexpr int64_t kMaxCount = std::numeric_limits<int64_t>::max();
  constexpr int64_t kMaxId = std::numeric_limits<int32_t>::max();
  CAROUSEL_ASSIGN_OR_RETURN(const std::string format, StringField(json, "format", path));
  if (format != kFormat) return FieldError(path, "format", absl::StrCat("\"", kFormat, "\""));
  CAROUSEL_ASSIGN_OR_RETURN(const int64_t version, CountField(json, "version", kMaxCount, path));
  if (version != kPlainVersion && version != kTaskVersion) {
    return absl::UnimplementedError(absl::StrCat(path, ": version ", version,
                                                 " is not known to this program, which reads ", kPlainVersion,
                                                 " and ", kTaskVersion));
  }
  TokenMeta meta;
  CAROUSEL_ASSIGN_OR_RETURN(meta.tokenizer, StringField(json, "tokenizer", path));
  CAROUSEL_ASSIGN_OR_RETURN(meta.vocab_size, CountField(json, "vocab_size", kMaxId, path));
  CAROUSEL_ASSIGN_OR_RETURN(const int64_t eod_id, CountField(json, "eod_id", kMaxId, path));
  meta.eod_id = static_cast<int32_t>(eod_id);
  CAROUSEL_ASSIGN_OR_RETURN(meta.num_tokens, CountField(json, "num_tokens", kMaxCount, path));
  CAROUSEL_ASSIGN_OR_RETURN(meta.num_documents, CountField(json, "num_documents", kMaxCount, path));
  CAROUSEL_ASSIGN_OR_RETURN(meta.text_bytes, CountField(json, "text_bytes", kMaxCount, path));
  CAROUSEL_ASSIGN_OR_RETURN(meta.bin_crc32c, HexField(json, "bin_crc32c", path));
  CAROUSEL_ASSIGN_OR_RETURN(meta.idx_crc32c, HexField(json, "idx_crc32c", path));
  const auto task = json.find("task");
  if ((task != json.end()) != (version == kTaskVersion) || (task != json.end() && !task->is_object())) {
    return FieldError(path, "task", "an object in version 2 and absent in version 1");
  }
  if (version == kTaskVersion) {
    CAROUSEL_ASSIGN_OR_RETURN(meta.task, ParseTask(*task, path));
  }
  if (meta.tokenizer == kTaskTokenizer && !meta.task.has_value()) {
    return FieldError(path, "task", absl::StrCat("there for the tokenizer \"", kTaskTokenizer, "\""));
  }
  return meta;
}
}  // namespace carousel

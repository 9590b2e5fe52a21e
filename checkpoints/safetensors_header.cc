// The header of a safetensors file: parsing what strangers wrote, and writing our own.
#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_join.h"
#include "checkpoints/safetensors.h"
#include "core/base/int_math.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using Json = nlohmann::json;

constexpr const char* kMetadataKey = "__metadata__";

struct DTypeRow {
  const char* name;
  int bits;
};
constexpr DTypeRow kDTypes[] = {
    {"BOOL", 8},    {"F4", 4},      {"F6_E2M3", 6}, {"F6_E3M2", 6},     {"U8", 8},          {"I8", 8},
    {"F8_E5M2", 8}, {"F8_E4M3", 8}, {"F8_E8M0", 8}, {"F8_E4M3FNUZ", 8}, {"F8_E5M2FNUZ", 8}, {"I16", 16},
    {"U16", 16},    {"F16", 16},    {"BF16", 16},   {"I32", 32},        {"U32", 32},        {"F32", 32},
    {"C64", 64},    {"F64", 64},    {"I64", 64},    {"U64", 64},
};
constexpr int kNumDTypes = static_cast<int>(std::size(kDTypes));
static_assert(static_cast<int>(SafetensorsDType::kU64) == kNumDTypes - 1);

// Elements of a shape; false if a dim is negative or the product does not fit.
bool CountElems(const std::vector<int64_t>& shape, int64_t* num_elems) {
  *num_elems = 1;
  bool empty = false;
  for (const int64_t d : shape) {
    if (d < 0) return false;
    empty |= d == 0;
  }
  if (empty) {
    *num_elems = 0;
    return true;
  }
  for (const int64_t d : shape) {
    if (__builtin_mul_overflow(*num_elems, d, num_elems)) return false;
  }
  return true;
}

// Bytes of a tensor; false if they do not fit or are no whole number.
bool CountBytes(SafetensorsDType dtype, const std::vector<int64_t>& shape, int64_t* num_bytes) {
  int64_t elems, bits;
  if (!CountElems(shape, &elems) || __builtin_mul_overflow(elems, BitsOf(dtype), &bits) || bits % 8 != 0) {
    return false;
  }
  *num_bytes = bits / 8;
  return true;
}

// Receives the JSON as events, so that duplicate keys are seen and nothing but the header is built.
class HeaderHandler {
 public:
  using number_integer_t = Json::number_integer_t;
  using number_unsigned_t = Json::number_unsigned_t;
  using number_float_t = Json::number_float_t;
  using string_t = Json::string_t;
  using binary_t = Json::binary_t;

  explicit HeaderHandler(SafetensorsHeader* header) : header_(header) {}
  const std::string& error() const { return error_; }

  bool start_object(size_t) {
    if (depth_ == 0) return ++depth_, true;
    if (depth_ == 1 && array_ == nullptr) {
      ++depth_;
      seen_.clear();
      key_.clear();
      if (!in_metadata()) {
        header_->tensors.emplace_back();
        header_->tensors.back().name = top_key_;
      }
      return true;
    }
    return Unexpected("an object");
  }
  bool key(string_t& text) {
    if (depth_ == 1) {
      if (!top_keys_.insert(text).second) return Fail(absl::StrCat("the name \"", text, "\" occurs twice"));
      top_key_ = text;
      return true;
    }
    if (!seen_.insert(text).second) return Fail(absl::StrCat(Where(), " has \"", text, "\" twice"));
    key_ = text;
    if (!in_metadata() && text != "dtype" && text != "shape" && text != "data_offsets") {
      return Fail(absl::StrCat(Where(), " has the unknown field \"", text, "\""));
    }
    return true;
  }
  bool string(string_t& text) {
    if (depth_ != 2 || array_ != nullptr) return Unexpected("a string");
    if (in_metadata()) return header_->metadata[key_] = text, true;
    if (key_ != "dtype") return Unexpected("a string");
    for (int i = 0; i < kNumDTypes; ++i) {
      if (text != kDTypes[i].name) continue;
      header_->tensors.back().dtype = static_cast<SafetensorsDType>(i);
      return true;
    }
    return Fail(absl::StrCat(Where(), " has the unknown dtype \"", text, "\""));
  }
  bool start_array(size_t) {
    if (depth_ != 2 || in_metadata() || array_ != nullptr || key_ == "dtype") return Unexpected("an array");
    array_ = key_ == "shape" ? &header_->tensors.back().shape : &offsets_;
    array_->clear();
    return true;
  }
  bool number_unsigned(number_unsigned_t value) {
    if (array_ == nullptr) return Unexpected("a number");
    if (value > static_cast<uint64_t>(INT64_MAX)) {
      return Fail(absl::StrCat(Where(), " has a number that is too large: ", value));
    }
    array_->push_back(static_cast<int64_t>(value));
    return true;
  }
  bool end_array() {
    if (array_ == &offsets_) {
      if (offsets_.size() != 2) return Fail(absl::StrCat(Where(), " must have two data_offsets"));
      header_->tensors.back().begin = offsets_[0];
      header_->tensors.back().end = offsets_[1];
    }
    array_ = nullptr;
    return true;
  }
  bool end_object() {
    --depth_;
    if (depth_ == 1 && !in_metadata() && seen_.size() != 3) {
      return Fail(absl::StrCat(Where(), " must have dtype, shape and data_offsets"));
    }
    return true;
  }
  bool null() { return Unexpected("null"); }
  bool boolean(bool) { return Unexpected("true or false"); }
  bool number_integer(number_integer_t) { return Unexpected("a negative number"); }
  bool number_float(number_float_t, const string_t&) { return Unexpected("a fraction"); }
  bool binary(binary_t&) { return Unexpected("binary data"); }
  bool parse_error(size_t position, const std::string&, const nlohmann::detail::exception&) {
    return Fail(absl::StrCat("not valid JSON at byte ", position));
  }

 private:
  bool in_metadata() const { return top_key_ == kMetadataKey; }
  std::string Where() const {
    return in_metadata() ? std::string(kMetadataKey) : absl::StrCat("tensor \"", top_key_, "\"");
  }
  bool Unexpected(const char* what) {
    if (depth_ == 0 || top_keys_.empty()) return Fail(absl::StrCat("unexpected ", what));
    return Fail(absl::StrCat(Where(), ": unexpected ", what, key_.empty() ? "" : " in ", key_));
  }
  bool Fail(std::string error) {
    if (error_.empty()) error_ = std::move(error);
    return false;
  }

  SafetensorsHeader* header_;
  std::string error_;
  int depth_ = 0;              // objects that are open
  std::string top_key_, key_;  // the last keys of the outer and of the inner object
  std::set<std::string> top_keys_, seen_;
  std::vector<int64_t> offsets_;
  std::vector<int64_t>* array_ = nullptr;  // what numbers go to
};

// Text as a JSON string; InvalidArgument if it is not UTF-8.
absl::StatusOr<std::string> Quoted(const std::string& text) {
  std::string quoted = Json(text).dump(-1, ' ', false, Json::error_handler_t::ignore);
  const Json parsed = Json::parse(quoted, nullptr, false);
  const std::string* const back = parsed.get_ptr<const std::string*>();
  if (back == nullptr || *back != text) {
    return absl::InvalidArgumentError("a name or a metadata text of a safetensors file is not valid UTF-8");
  }
  return quoted;
}
}  // namespace

const char* NameOf(SafetensorsDType dtype) { return kDTypes[static_cast<int>(dtype)].name; }
int BitsOf(SafetensorsDType dtype) { return kDTypes[static_cast<int>(dtype)].bits; }

int64_t SafetensorsEntry::num_elems() const {
  int64_t n = 0;
  CAROUSEL_CHECK(CountElems(shape, &n));
  return n;
}

const SafetensorsEntry* SafetensorsHeader::Find(const std::string& name) const {
  const auto it = index.find(name);
  return it == index.end() ? nullptr : &tensors[it->second];
}

absl::StatusOr<int64_t> SafetensorsHeaderBytes(const void* first_8_bytes, int64_t file_bytes,
                                               const std::string& file) {
  uint64_t length = 0;
  std::memcpy(&length, first_8_bytes, 8);
  if (length > static_cast<uint64_t>(kMaxSafetensorsHeaderBytes)) {
    return absl::InvalidArgumentError(
        absl::StrCat(file, " is no safetensors file: it would have a header of ", length, " bytes (at most ",
                     kMaxSafetensorsHeaderBytes, "); give a file that ends in .safetensors and is one"));
  }
  const int64_t total = 8 + static_cast<int64_t>(length);
  if (total > file_bytes) {
    return absl::InvalidArgumentError(absl::StrCat(file, " is cut off: its header needs ", total,
                                                   " bytes and the file has ", file_bytes,
                                                   "; copy or download it again"));
  }
  return total;
}

absl::StatusOr<SafetensorsHeader> ParseSafetensorsHeader(const std::string& prefix, int64_t file_bytes,
                                                         const std::string& file) {
  const auto fail = [&](const std::string& why) {
    return absl::InvalidArgumentError(absl::StrCat(file, ": bad safetensors header: ", why));
  };
  if (prefix.size() < 8 || file_bytes < 8) return fail("the file has fewer than 8 bytes");
  SafetensorsHeader header;
  CAROUSEL_ASSIGN_OR_RETURN(header.data_begin, SafetensorsHeaderBytes(prefix.data(), file_bytes, file));
  header.file_bytes = file_bytes;
  CAROUSEL_CHECK_LE(header.data_begin, static_cast<int64_t>(prefix.size()));
  const char* const begin = prefix.data() + 8;
  const char* const end = prefix.data() + header.data_begin;
  if (begin == end || *begin != '{') return fail("it does not begin with {");
  // The JSON parser would take a NUL byte for the end of the text.
  if (std::memchr(begin, 0, static_cast<size_t>(end - begin)) != nullptr) return fail("it has a NUL byte");
  HeaderHandler handler(&header);
  if (!Json::sax_parse(begin, end, &handler)) return fail(handler.error());

  // One buffer, in order, without holes, covered to its last byte.
  std::sort(header.tensors.begin(), header.tensors.end(),
            [](const SafetensorsEntry& a, const SafetensorsEntry& b) {
              return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
            });
  int64_t position = 0;
  for (size_t i = 0; i < header.tensors.size(); ++i) {
    const SafetensorsEntry& t = header.tensors[i];
    int64_t num_bytes = 0;
    if (!CountBytes(t.dtype, t.shape, &num_bytes)) {
      return fail(absl::StrCat("tensor \"", t.name, "\" has an impossible shape [",
                               absl::StrJoin(t.shape, ", "), "] for ", NameOf(t.dtype)));
    }
    if (t.begin != position) {
      return fail(absl::StrCat("tensor \"", t.name, "\" begins at byte ", t.begin,
                               " of the data and the one before it ends at ", position));
    }
    if (t.end < t.begin || t.end - t.begin != num_bytes) {
      return fail(absl::StrCat("tensor \"", t.name, "\" of shape [", absl::StrJoin(t.shape, ", "), "] ",
                               NameOf(t.dtype), " needs ", num_bytes, " bytes and has offsets ", t.begin,
                               " to ", t.end));
    }
    position = t.end;
    header.index.emplace(t.name, i);
  }
  if (position != file_bytes - header.data_begin) {
    return fail(absl::StrCat("the tensors need ", position, " bytes and the file has ",
                             file_bytes - header.data_begin, " bytes of data; copy or download it again"));
  }
  return header;
}

absl::StatusOr<SafetensorsLayout> PlanSafetensors(std::vector<SafetensorsSpec> tensors,
                                                  const std::map<std::string, std::string>& metadata,
                                                  int64_t data_alignment) {
  CAROUSEL_CHECK_GE(data_alignment, int64_t{1});
  std::sort(tensors.begin(), tensors.end(), [](const SafetensorsSpec& a, const SafetensorsSpec& b) {
    return a.dtype != b.dtype ? a.dtype > b.dtype : a.name < b.name;
  });
  SafetensorsLayout layout;
  std::string json = "{";
  if (!metadata.empty()) {
    std::vector<std::string> pairs;
    for (const auto& [key, value] : metadata) {
      CAROUSEL_ASSIGN_OR_RETURN(const std::string quoted_key, Quoted(key));
      CAROUSEL_ASSIGN_OR_RETURN(const std::string quoted_value, Quoted(value));
      pairs.push_back(absl::StrCat(quoted_key, ":", quoted_value));
    }
    absl::StrAppend(&json, "\"", kMetadataKey, "\":{", absl::StrJoin(pairs, ","), "}");
  }
  std::set<std::string> names;
  int64_t position = 0;
  for (SafetensorsSpec& t : tensors) {
    if (t.name == kMetadataKey || !names.insert(t.name).second) {
      return absl::InvalidArgumentError(
          absl::StrCat("two tensors named \"", t.name, "\", or a reserved name"));
    }
    int64_t num_bytes = 0, end = 0;
    if (!CountBytes(t.dtype, t.shape, &num_bytes) || __builtin_add_overflow(position, num_bytes, &end)) {
      return absl::InvalidArgumentError(absl::StrCat("tensor \"", t.name, "\" has an impossible shape [",
                                                     absl::StrJoin(t.shape, ", "), "]"));
    }
    CAROUSEL_ASSIGN_OR_RETURN(const std::string quoted, Quoted(t.name));
    absl::StrAppend(&json, json.size() > 1 ? "," : "", quoted, ":{\"dtype\":\"", NameOf(t.dtype),
                    "\",\"shape\":[", absl::StrJoin(t.shape, ","), "],\"data_offsets\":[", position, ",", end,
                    "]}");
    layout.tensors.push_back({std::move(t.name), t.dtype, std::move(t.shape), position, end});
    position = end;
  }
  json += "}";
  const int64_t padded = RoundUp(8 + static_cast<int64_t>(json.size()), data_alignment) - 8;
  if (padded > kMaxSafetensorsHeaderBytes) {
    return absl::InvalidArgumentError(absl::StrCat("a safetensors header of ", padded,
                                                   " bytes is too long (at most ", kMaxSafetensorsHeaderBytes,
                                                   "); put fewer tensors into a file"));
  }
  json.resize(static_cast<size_t>(padded), ' ');
  const uint64_t length = static_cast<uint64_t>(padded);
  layout.prefix.assign(reinterpret_cast<const char*>(&length), 8);
  layout.prefix += json;
  if (__builtin_add_overflow(layout.data_begin(), position, &layout.file_bytes)) {
    return absl::InvalidArgumentError("the tensors of a safetensors file are too large");
  }
  return layout;
}
}  // namespace carousel

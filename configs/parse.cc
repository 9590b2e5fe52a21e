#include "configs/parse.h"

#include <google/protobuf/io/tokenizer.h>
#include <google/protobuf/text_format.h>

#include <algorithm>
#include <optional>
#include <utility>

#include "absl/strings/escaping.h"
#include "absl/strings/match.h"
#include "absl/strings/str_split.h"
#include "configs/field_path.h"
#include "configs/suggest.h"

namespace carousel {
namespace {
using google::protobuf::Descriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::TextFormat;

constexpr int kMaxDepth = 32;        // of nested messages; the schema needs 3
constexpr size_t kMaxExcerpt = 110;  // characters of the user's line that are repeated
constexpr size_t kMaxFound = 50;     // problems listed
constexpr int kMaxRepairs = 20;      // words that stop the parser are listed up to this many

// The text between the nth (from 0) pair of double quotes of one of Protobuf's messages.
std::string Quoted(const std::string& message, int n) {
  const std::vector<std::string> parts = absl::StrSplit(message, '"');
  const size_t index = static_cast<size_t>(2 * n + 1);
  return index < parts.size() ? parts[index] : "";
}

const Descriptor* FindMessage(const Descriptor& root, const std::string& full_name) {
  if (root.full_name() == full_name) return &root;
  for (int i = 0; i < root.field_count(); ++i) {
    const FieldDescriptor& field = *root.field(i);
    if (field.cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
    if (const Descriptor* found = FindMessage(*field.message_type(), full_name)) return found;
  }
  return nullptr;
}

// The enum type of the first field of that name: names of enum fields are unique in the schema.
const FieldDescriptor* FindEnumField(const Descriptor& root, const std::string& name) {
  for (int i = 0; i < root.field_count(); ++i) {
    const FieldDescriptor& field = *root.field(i);
    if (field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE) {
      if (const FieldDescriptor* found = FindEnumField(*field.message_type(), name)) return found;
    } else if (field.name() == name && field.cpp_type() == FieldDescriptor::CPPTYPE_ENUM) {
      return &field;
    }
  }
  return nullptr;
}

// A place in the text, in bytes.
struct Place {
  size_t line = 0, at = 0;
};

// A word that stopped the parser, and that can be replaced by a 0 of the same width so that it goes on and
// finds what else is wrong.
struct Repair {
  Place place;
  size_t length = 0;
};

// Turns Protobuf's messages into ours.
class Collector : public google::protobuf::io::ErrorCollector {
 public:
  struct Found {
    Place place;
    std::string text;
    bool of_root = false;  // a field that only the whole config has, where there is none of its name
  };
  Collector(const std::vector<std::string>& lines, const std::string& name) : lines_(lines), name_(name) {}

  void AddError(int line, int column, const std::string& message) override { Report(line, column, message); }
  // Unknown fields arrive as warnings (AllowUnknownField), so that the parse goes on behind them.
  void AddWarning(int line, int column, const std::string& message) override {
    Report(line, column, message);
  }
  const std::vector<Found>& found() const { return found_; }
  const std::optional<Repair>& repair() const { return repair_; }

 private:
  void Report(int line, int column, const std::string& message) {
    if (found_.size() >= kMaxFound) return;
    const Descriptor& root = *config::RunConfig::descriptor();
    Place place{.line = static_cast<size_t>(std::max(line, 0))};
    place.at = ByteOfColumn(Line(place.line), column);
    std::string told = message;
    bool of_root = false;
    if (absl::StartsWith(message, "Message type \"") && absl::StrContains(message, "has no field named")) {
      const std::string word = Quoted(message, 1);
      place = BeginOf(word, place);
      if (const Descriptor* type = FindMessage(root, Quoted(message, 0))) {
        const std::string path = PathOfMessage(root, *type);
        of_root = !path.empty() && root.FindFieldByName(word) != nullptr;
        told = absl::StrCat(path.empty() ? "the config" : path, " has no field \"", word, "\"",
                            FieldHint(word, root, *type));
      }
    } else if (absl::StartsWith(message, "Unknown enumeration value of \"")) {
      const std::string word = Quoted(message, 0);
      place = BeginOf(word, place);
      repair_ = Repair{place, word.size()};
      if (const FieldDescriptor* field = FindEnumField(root, Quoted(message, 1))) {
        const std::vector<std::string> names = EnumNames(*field->enum_type());
        const std::string nearest = Nearest(word, names);
        told = absl::StrCat(field->name(), " has no value ", word,
                            nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"), " (",
                            absl::StrJoin(names, ", "), ")");
      }
    } else if (absl::StartsWith(message, "Invalid value for boolean field \"")) {
      const std::string word = Quoted(message, 1);
      place = BeginOf(word, place);
      repair_ = Repair{place, word.size()};
      told = absl::StrCat(Quoted(message, 0), " is true or false, not ", word);
    } else if (absl::StartsWith(message, "Expected integer, got: ") ||
               absl::StartsWith(message, "Expected double, got: ")) {
      const std::string word = message.substr(message.find(": ") + 2);
      repair_ = Repair{place, word.size()};
      absl::StrAppend(&told, absl::StrContains(message, "integer") ? "; write a whole number, such as 256"
                                                                   : "; write a number, such as 0.1");
    } else if (absl::StartsWith(message, "Non-repeated field \"")) {
      told = absl::StrCat(absl::StripSuffix(message, "."), "; keep one of them");
    } else if (absl::StartsWith(message, "Integer out of range (")) {
      const std::string word = message.substr(22, message.find(')') - 22);
      repair_ = Repair{place, word.size()};
      told = absl::StrCat("the integer ", word, " has more than 63 bits");
    }
    if (message == "Expected identifier, got: ") {
      told = "the text ends here, but a \"}\" is missing";
      // Sections that seemed to be inside of another: that one was not closed.
      const auto inside =
          std::find_if(found_.begin(), found_.end(), [](const Found& f) { return f.of_root; });
      if (inside != found_.end()) {
        absl::StrAppend(&told, "; probably at the end of the block before line ", inside->place.line + 1);
        found_.erase(std::remove_if(found_.begin(), found_.end(), [](const Found& f) { return f.of_root; }),
                     found_.end());
      }
    }
    if (absl::StartsWith(message, "Expected string, got: ")) told += "; write it in quotes: \"...\"";
    if (absl::StartsWith(message, "Expected identifier, got: \"")) {
      told += "; only text stands in quotes: numbers, true, false and names of values do not";
    }
    if (absl::StartsWith(message, "Expected identifier, got: {") ||
        absl::StartsWith(message, "Expected \"{\", found")) {
      told +=
          "; a config is text like configs/demo_bytes.textproto, no JSON or YAML: model { num_blocks: 2 }";
    }
    if (absl::StartsWith(message, "Interpreting non ascii codepoint")) {
      told = "a byte that is no text of a config; save the file as UTF-8 without a byte order mark";
    }
    if (message == "Expected identifier, got: }") told = "this \"}\" closes nothing";
    std::string text = absl::StrCat(name_, ":", place.line + 1, ":", place.at + 1, ": ", told);
    const std::string& source = Line(place.line);
    if (!source.empty() && source.size() <= kMaxExcerpt) {
      std::string excerpt = source;
      std::replace_if(
          excerpt.begin(), excerpt.end(), [](char c) { return static_cast<unsigned char>(c) < 32; }, ' ');
      absl::StrAppend(&text, "\n    ", excerpt, "\n    ", std::string(place.at, ' '), "^");
    }
    found_.push_back({place, std::move(text), of_root});
  }

  const std::string& Line(size_t line) const { return line < lines_.size() ? lines_[line] : kEmpty; }

  // Protobuf tells the place behind a word, possibly on a later line: where the word begins.
  Place BeginOf(const std::string& word, const Place& behind) const {
    if (word.empty()) return behind;
    for (size_t line = behind.line + 1; line-- > 0;) {
      const size_t from = line == behind.line ? behind.at : std::string::npos;
      const size_t begin = Line(line).rfind(word, from);
      if (begin != std::string::npos) return {line, begin};
    }
    return behind;
  }

  // Protobuf counts columns with tabs of 8; people's editors count characters.
  static size_t ByteOfColumn(const std::string& line, int column) {
    int seen = 0;
    size_t i = 0;
    for (; i < line.size() && seen < column; ++i) seen += line[i] == '\t' ? 8 - seen % 8 : 1;
    return i;
  }

  inline static const std::string kEmpty;
  const std::vector<std::string>& lines_;
  const std::string& name_;
  std::vector<Found> found_;
  std::optional<Repair> repair_;
};

void RecordOrigins(const Message& message, const TextFormat::ParseInfoTree& tree, const std::string& prefix,
                   const std::string& name, Origins* origins) {
  std::vector<const FieldDescriptor*> fields;
  message.GetReflection()->ListFields(message, &fields);
  for (const FieldDescriptor* field : fields) {
    const int count = field->is_repeated() ? message.GetReflection()->FieldSize(message, field) : 1;
    for (int i = 0; i < count; ++i) {
      const int index = field->is_repeated() ? i : -1;
      std::string path = prefix + field->name();
      if (field->is_repeated()) absl::StrAppend(&path, "[", i, "]");
      TextFormat::ParseLocation location = tree.GetLocation(field, index);
      // Of a list in brackets, Protobuf tells where it begins.
      if (location.line < 0) location = tree.GetLocation(field, 0);
      if (location.line >= 0) {
        (*origins)[path] = absl::StrCat(name, ":", location.line + 1, ":", location.column + 1);
      }
      if (field->cpp_type() != FieldDescriptor::CPPTYPE_MESSAGE) continue;
      const TextFormat::ParseInfoTree* nested = tree.GetTreeForNested(field, index);
      if (nested == nullptr) continue;
      const Message& value = field->is_repeated()
                                 ? message.GetReflection()->GetRepeatedMessage(message, field, i)
                                 : message.GetReflection()->GetMessage(message, field);
      RecordOrigins(value, *nested, path + ".", name, origins);
    }
  }
}
}  // namespace

bool ParseRunConfig(const std::string& text, const std::string& name, config::RunConfig* config,
                    Origins* origins, Problems* problems) {
  if (text.size() > kMaxConfigBytes) {
    problems->Add(absl::StrCat(name, ": ", text.size(), " bytes are too many for a config; the limit is ",
                               kMaxConfigBytes));
    return false;
  }
  const std::vector<std::string> lines = absl::StrSplit(text, '\n');
  std::vector<std::string> repaired = lines;
  std::vector<Collector::Found> found;
  TextFormat::ParseInfoTree tree;
  bool complete = false;
  for (int i = 0; i < kMaxRepairs; ++i) {
    Collector collector(lines, name);
    TextFormat::Parser parser;
    parser.RecordErrorsTo(&collector);
    parser.WriteLocationsTo(&tree);
    parser.AllowUnknownField(true);
    parser.SetRecursionLimit(kMaxDepth);
    const bool parsed = parser.ParseFromString(absl::StrJoin(repaired, "\n"), config);
    complete = parsed && i == 0;  // a repaired text is not what the user wrote
    // Each pass finds what the ones before it found, except the words that were replaced.
    for (const Collector::Found& f : collector.found()) {
      const bool known =
          std::any_of(found.begin(), found.end(), [&](const auto& g) { return g.text == f.text; });
      if (!known && found.size() < kMaxFound) found.push_back(f);
    }
    if (parsed || !collector.repair().has_value()) break;
    const Repair& repair = *collector.repair();
    if (repair.place.line >= repaired.size()) break;
    std::string& line = repaired[repair.place.line];
    if (repair.length == 0 || repair.place.at + repair.length > line.size()) break;
    line.replace(repair.place.at, repair.length, "0" + std::string(repair.length - 1, ' '));
  }
  std::stable_sort(found.begin(), found.end(), [](const auto& a, const auto& b) {
    return std::pair(a.place.line, a.place.at) < std::pair(b.place.line, b.place.at);
  });
  for (const Collector::Found& f : found) problems->Add(f.text);
  if (!complete && problems->empty())
    problems->Add(absl::StrCat(name, ": not a config in Protobuf text format"));
  if (complete) RecordOrigins(*config, tree, "", name, origins);
  return complete;
}
}  // namespace carousel

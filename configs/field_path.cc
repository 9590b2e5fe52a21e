#include "configs/field_path.h"

#include <memory>

#include "absl/strings/escaping.h"
#include "absl/strings/numbers.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "configs/suggest.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace {
using google::protobuf::Descriptor;
using google::protobuf::EnumDescriptor;
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

constexpr size_t kMaxShown = 80;  // characters of a user's value repeated in a message

std::string Shown(const std::string& value) {
  if (value.size() <= kMaxShown) return absl::CEscape(value);
  return absl::StrCat(absl::CEscape(value.substr(0, kMaxShown)), "...");
}

bool IsMessage(const FieldDescriptor& field) { return field.cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE; }

// "data.train[2]" -> name "train", index 2; no brackets: index -1.
absl::Status SplitStep(const std::string& step, std::string* name, int64_t* index) {
  *index = -1;
  const size_t bracket = step.find('[');
  *name = step.substr(0, bracket);
  if (bracket == std::string::npos) return absl::OkStatus();
  const bool closed = step.back() == ']';
  if (!closed || !absl::SimpleAtoi(step.substr(bracket + 1, step.size() - bracket - 2), index) ||
      *index < 0) {
    return absl::InvalidArgumentError(
        absl::StrCat("\"", Shown(step), "\" must be a name and an index, as in ", Shown(*name), "[0]"));
  }
  return absl::OkStatus();
}

absl::Status WrongType(const std::string& path, const std::string& value, absl::string_view expected) {
  return absl::InvalidArgumentError(absl::StrCat(path, " is ", expected, ", not \"", Shown(value), "\""));
}

// Where a value goes: into a singular field, or into an element of a list.
struct Target {
  Message* message;
  const FieldDescriptor* field;
  int index = -1;  // of a list: the element; at its end: a new one. Singular: -1

  template <class T>
  void Set(void (Reflection::*set)(Message*, const FieldDescriptor*, T) const,
           void (Reflection::*set_element)(Message*, const FieldDescriptor*, int, T) const,
           void (Reflection::*add)(Message*, const FieldDescriptor*, T) const, T value) const {
    const Reflection& reflection = *message->GetReflection();
    if (index < 0) {
      (reflection.*set)(message, field, value);
    } else if (index < reflection.FieldSize(*message, field)) {
      (reflection.*set_element)(message, field, index, value);
    } else {
      (reflection.*add)(message, field, value);
    }
  }
};

// Sets a field, or an element of a list, that is not a message.
absl::Status SetScalar(const std::string& path, const std::string& value, const Target& target) {
  const FieldDescriptor& field = *target.field;
  switch (field.cpp_type()) {
    case FieldDescriptor::CPPTYPE_INT64: {
      int64_t number = 0;
      if (!absl::SimpleAtoi(value, &number)) {
        return WrongType(path, value, "an integer of at most 63 bits, written like 256");
      }
      target.Set(&Reflection::SetInt64, &Reflection::SetRepeatedInt64, &Reflection::AddInt64, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_UINT64: {
      uint64_t number = 0;
      if (!absl::SimpleAtoi(value, &number)) {
        return WrongType(path, value, "a non-negative integer of at most 64 bits, written like 256");
      }
      target.Set(&Reflection::SetUInt64, &Reflection::SetRepeatedUInt64, &Reflection::AddUInt64, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_DOUBLE: {
      double number = 0;
      if (!absl::SimpleAtod(value, &number))
        return WrongType(path, value, "a number, written like 0.5 or 1e-3");
      target.Set(&Reflection::SetDouble, &Reflection::SetRepeatedDouble, &Reflection::AddDouble, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_BOOL: {
      if (value != "true" && value != "false") return WrongType(path, value, "true or false");
      target.Set(&Reflection::SetBool, &Reflection::SetRepeatedBool, &Reflection::AddBool, value == "true");
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_ENUM: {
      const google::protobuf::EnumValueDescriptor* number = field.enum_type()->FindValueByName(value);
      if (number == nullptr) {
        const std::vector<std::string> names = EnumNames(*field.enum_type());
        const std::string nearest = Nearest(value, names);
        return absl::InvalidArgumentError(
            absl::StrCat(path, " has no value \"", Shown(value), "\"",
                         nearest.empty() ? "" : absl::StrCat("; did you mean ", nearest, "?"), " (",
                         absl::StrJoin(names, ", "), ")"));
      }
      target.Set(&Reflection::SetEnum, &Reflection::SetRepeatedEnum, &Reflection::AddEnum, number);
      return absl::OkStatus();
    }
    case FieldDescriptor::CPPTYPE_STRING: {
      std::string text = value;
      const bool quoted = value.size() >= 2 && (value.front() == '"' || value.front() == '\'') &&
                          value.back() == value.front();
      if (quoted) {
        std::string error;
        if (!absl::CUnescape(value.substr(1, value.size() - 2), &text, &error)) {
          return WrongType(path, value, absl::StrCat("a string (", error, ")"));
        }
      }
      target.Set(&Reflection::SetString, &Reflection::SetRepeatedString, &Reflection::AddString, text);
      return absl::OkStatus();
    }
    default:
      return absl::InternalError(absl::StrCat(path, " has a type that --set does not know"));
  }
}

// Sets a whole list from "[1, 2]" or "1,2". A list of strings is set to one string.
absl::Status SetList(const std::string& path, const std::string& value, const FieldDescriptor& field,
                     Message* message) {
  message->GetReflection()->ClearField(message, &field);
  std::vector<std::string> elements = {value};
  if (field.cpp_type() != FieldDescriptor::CPPTYPE_STRING) {
    absl::string_view inner = absl::StripAsciiWhitespace(value);
    if (absl::ConsumePrefix(&inner, "[") && !absl::ConsumeSuffix(&inner, "]")) {
      return WrongType(path, value, "a list, written like [1, 2]");
    }
    if (absl::StripAsciiWhitespace(inner).empty()) return absl::OkStatus();
    elements = absl::StrSplit(inner, ',');
  }
  for (size_t i = 0; i < elements.size(); ++i) {
    const std::string element(absl::StripAsciiWhitespace(elements[i]));
    CAROUSEL_RETURN_IF_ERROR(SetScalar(absl::StrCat(path, "[", i, "]"), element,
                                       {.message = message, .field = &field, .index = static_cast<int>(i)}));
  }
  return absl::OkStatus();
}

// An index into a list: of an element, or one past the end for a new one.
absl::Status CheckIndex(const std::string& path, int64_t index, int64_t size) {
  if (index <= size) return absl::OkStatus();
  return absl::InvalidArgumentError(
      absl::StrCat(path, " has ", size, " element(s), so the next index is [", size, "], not [", index, "]"));
}

void AppendLeafPaths(const Descriptor& message, const std::string& prefix, std::vector<std::string>* paths) {
  for (int i = 0; i < message.field_count(); ++i) {
    const FieldDescriptor& field = *message.field(i);
    const std::string path = prefix + field.name();
    if (IsMessage(field)) {
      AppendLeafPaths(*field.message_type(), path + ".", paths);
    } else {
      paths->push_back(path);
    }
  }
}
}  // namespace

std::vector<std::string> FieldNames(const Descriptor& message) {
  std::vector<std::string> names;
  for (int i = 0; i < message.field_count(); ++i) names.push_back(message.field(i)->name());
  return names;
}

std::vector<std::string> EnumNames(const EnumDescriptor& type) {
  std::vector<std::string> names;
  for (int i = 0; i < type.value_count(); ++i) names.push_back(type.value(i)->name());
  return names;
}

std::vector<std::string> LeafPaths(const Descriptor& root) {
  std::vector<std::string> paths;
  AppendLeafPaths(root, "", &paths);
  return paths;
}

std::string PathOfMessage(const Descriptor& root, const Descriptor& message) {
  for (int i = 0; i < root.field_count(); ++i) {
    const FieldDescriptor& field = *root.field(i);
    if (!IsMessage(field)) continue;
    if (field.message_type() == &message) return field.name();
    const std::string below = PathOfMessage(*field.message_type(), message);
    if (!below.empty()) return absl::StrCat(field.name(), ".", below);
  }
  return "";
}

std::string FieldHint(const std::string& name, const Descriptor& root, const Descriptor& message) {
  const std::string nearest = Nearest(name, FieldNames(message));
  // A field of exactly this name elsewhere is a better guess than a merely similar one here.
  std::vector<std::string> leaves = LeafPaths(root), last_names;
  for (const std::string& leaf : leaves) last_names.push_back(leaf.substr(leaf.rfind('.') + 1));
  std::string elsewhere = Nearest(name, last_names);
  const int64_t distance = elsewhere.empty() ? 0 : EditDistance(name, elsewhere);
  if (!nearest.empty() && (elsewhere.empty() || EditDistance(name, nearest) <= distance)) {
    return absl::StrCat("; did you mean \"", nearest, "\"?");
  }
  for (size_t i = 0; i < leaves.size() && !elsewhere.empty(); ++i) {
    if (last_names[i] == elsewhere) return absl::StrCat("; did you mean ", leaves[i], "?");
  }
  return DidYouMean(name, FieldNames(message));
}

absl::Status SetField(const std::string& assignment, Message* config, std::string* path) {
  const size_t equals = assignment.find('=');
  if (equals == std::string::npos || equals == 0) {
    return absl::InvalidArgumentError("expected PATH=VALUE, as in model.num_heads=4");
  }
  const std::string value = assignment.substr(equals + 1);
  const std::vector<std::string> steps = absl::StrSplit(assignment.substr(0, equals), '.');
  const Descriptor& root = *config->GetDescriptor();

  // Work on a copy: a path may add messages on its way before it turns out to be wrong.
  const std::unique_ptr<Message> copy(config->New());
  copy->CopyFrom(*config);
  Message* message = copy.get();
  std::string canonical;
  for (size_t i = 0; i < steps.size(); ++i) {
    std::string name;
    int64_t index = -1;
    CAROUSEL_RETURN_IF_ERROR(SplitStep(steps[i], &name, &index));
    const FieldDescriptor* field = message->GetDescriptor()->FindFieldByName(name);
    if (field == nullptr) {
      return absl::InvalidArgumentError(absl::StrCat(canonical.empty() ? "the config" : canonical,
                                                     " has no field \"", Shown(name), "\"",
                                                     FieldHint(name, root, *message->GetDescriptor())));
    }
    absl::StrAppend(&canonical, canonical.empty() ? "" : ".", name);
    const Reflection& reflection = *message->GetReflection();
    const bool last = i + 1 == steps.size();
    if (!field->is_repeated() && index >= 0) {
      return absl::InvalidArgumentError(absl::StrCat(canonical, " is not a list; leave out [", index, "]"));
    }
    if (last && index < 0 && value.empty()) {
      reflection.ClearField(message, field);
      break;
    }
    if (last && IsMessage(*field)) {
      const std::vector<std::string> names = FieldNames(*field->message_type());
      return absl::InvalidArgumentError(
          absl::StrCat(canonical, " is a group of fields; set one of them, as in ", canonical, ".",
                       names.front(), "=VALUE (fields: ", absl::StrJoin(names, ", "), ")"));
    }
    if (last && field->is_repeated() && index < 0) {
      CAROUSEL_RETURN_IF_ERROR(SetList(canonical, value, *field, message));
      break;
    }
    if (last) {
      if (index >= 0) {
        CAROUSEL_RETURN_IF_ERROR(CheckIndex(canonical, index, reflection.FieldSize(*message, field)));
        absl::StrAppend(&canonical, "[", index, "]");
      }
      CAROUSEL_RETURN_IF_ERROR(SetScalar(
          canonical, value, {.message = message, .field = field, .index = static_cast<int>(index)}));
      break;
    }
    if (!IsMessage(*field)) {
      return absl::InvalidArgumentError(
          absl::StrCat(canonical, " is a single value; it has no field \"", Shown(steps[i + 1]), "\""));
    }
    if (field->is_repeated()) {
      const int64_t element = index < 0 ? 0 : index;
      const int64_t size = reflection.FieldSize(*message, field);
      CAROUSEL_RETURN_IF_ERROR(CheckIndex(canonical, element, size));
      absl::StrAppend(&canonical, "[", element, "]");
      message = element == size
                    ? reflection.AddMessage(message, field)
                    : reflection.MutableRepeatedMessage(message, field, static_cast<int>(element));
    } else {
      message = reflection.MutableMessage(message, field);
    }
  }
  config->GetReflection()->Swap(config, copy.get());
  *path = canonical;
  return absl::OkStatus();
}
}  // namespace carousel

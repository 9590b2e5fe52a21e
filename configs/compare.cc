#include "configs/compare.h"

#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>
#include <google/protobuf/text_format.h>

#include <algorithm>

#include "absl/strings/str_cat.h"
#include "configs/run.pb.h"

namespace carousel {
namespace {
using google::protobuf::FieldDescriptor;
using google::protobuf::Message;
using google::protobuf::Reflection;

int Count(const Message& message, const FieldDescriptor* field) {
  const Reflection& reflection = *message.GetReflection();
  return field->is_repeated() ? reflection.FieldSize(message, field)
                              : static_cast<int>(reflection.HasField(message, field));
}

std::string Value(const Message& message, const FieldDescriptor* field, int index) {
  if (index >= Count(message, field)) return "(not set)";
  std::string text;
  google::protobuf::TextFormat::PrintFieldValueToString(message, field, field->is_repeated() ? index : -1,
                                                        &text);
  return text;
}

void Compare(const Message& first, const Message& second, const std::string& path,
             std::vector<FieldDifference>* differences) {
  const google::protobuf::Descriptor& type = *first.GetDescriptor();
  for (int i = 0; i < type.field_count(); ++i) {
    const FieldDescriptor* field = type.field(i);
    const int count = std::max(Count(first, field), Count(second, field));
    for (int j = 0; j < count; ++j) {
      const std::string name =
          absl::StrCat(path, field->name(), field->is_repeated() ? absl::StrCat("[", j, "]") : "");
      const bool both = j < Count(first, field) && j < Count(second, field);
      if (field->cpp_type() == FieldDescriptor::CPPTYPE_MESSAGE && both) {
        const auto value = [&](const Message& m) -> const Message& {
          return field->is_repeated() ? m.GetReflection()->GetRepeatedMessage(m, field, j)
                                      : m.GetReflection()->GetMessage(m, field);
        };
        Compare(value(first), value(second), name + ".", differences);
        continue;
      }
      FieldDifference difference = {name, Value(first, field, j), Value(second, field, j)};
      if (difference.first != difference.second) differences->push_back(std::move(difference));
    }
  }
}
}  // namespace

std::vector<FieldDifference> CompareResolved(const std::string& first, const std::string& second) {
  config::RunConfig a, b;
  google::protobuf::TextFormat::ParseFromString(first, &a);
  google::protobuf::TextFormat::ParseFromString(second, &b);
  std::vector<FieldDifference> differences;
  Compare(a, b, "", &differences);
  return differences;
}
}  // namespace carousel

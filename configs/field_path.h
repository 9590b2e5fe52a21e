// Fields of a Protobuf message by dotted names, through reflection: what --set and error messages speak of.
#pragma once
#include <google/protobuf/descriptor.h>
#include <google/protobuf/message.h>

#include <string>
#include <vector>

#include "absl/status/status.h"

namespace carousel {

std::vector<std::string> FieldNames(const google::protobuf::Descriptor& message);
std::vector<std::string> EnumNames(const google::protobuf::EnumDescriptor& type);

// Every field that holds a value, depth first: "model.num_heads", "data.train.path". REQUIRES: the type does
// not contain itself.
std::vector<std::string> LeafPaths(const google::protobuf::Descriptor& root);

// Where in `root` a message type is used first: "model", "data.train"; empty for root itself and for a type
// that does not occur.
std::string PathOfMessage(const google::protobuf::Descriptor& root,
                          const google::protobuf::Descriptor& message);

// For a name that `message` (a part of `root`) does not have: the nearest field of it, or a field of that
// name elsewhere, or the list of its fields. Starts with "; ".
std::string FieldHint(const std::string& name, const google::protobuf::Descriptor& root,
                      const google::protobuf::Descriptor& message);

// Applies "path=value" as RunOverrides describes (configs/load.h). *path (set on success) is the path in its
// canonical form, with indices: "data.train[0].path". The message is unchanged on error.
absl::Status SetField(const std::string& assignment, google::protobuf::Message* config, std::string* path);
}  // namespace carousel

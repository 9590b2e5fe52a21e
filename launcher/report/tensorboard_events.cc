#include "launcher/report/tensorboard_events.h"

#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <charconv>
#include <chrono>
#include <cmath>

#include "absl/strings/str_cat.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/file_system.h"
#include "core/base/status_macros.h"
#include "core/text/utf8.h"
#include "launcher/report/tensorboard.pb.h"

namespace carousel {
namespace {

double Now() {
  return std::chrono::duration<double>(std::chrono::system_clock::now().time_since_epoch()).count();
}

void AppendLittleEndian(uint64_t value, int num_bytes, std::string* out) {
  for (int i = 0; i < num_bytes; ++i) out->push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

// A file name of the host's name, whatever it is.
std::string FileNamePart(const std::string& text) {
  std::string result = text.empty() ? "localhost" : text.substr(0, 64);
  for (char& c : result) {
    const bool plain = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-';
    if (!plain) c = '_';
  }
  return result;
}

tensorboard::Summary::Value* PluginValue(const std::string& tag, const std::string& plugin,
                                         tensorboard::Event* event) {
  tensorboard::Summary::Value* value = event->mutable_summary()->add_value();
  value->set_tag(tag);
  value->mutable_metadata()->mutable_plugin_data()->set_plugin_name(plugin);
  return value;
}
}  // namespace

uint32_t MaskedCrc32c(std::string_view bytes) {
  const uint32_t crc = UpdateCrc32c(0, bytes.data(), static_cast<int64_t>(bytes.size()));
  return std::rotr(crc, 15) + 0xa282ead8u;
}

std::string FrameRecord(std::string_view data) {
  std::string record;
  record.reserve(data.size() + 16);
  AppendLittleEndian(data.size(), 8, &record);
  AppendLittleEndian(MaskedCrc32c(record), 4, &record);
  record.append(data);
  AppendLittleEndian(MaskedCrc32c(data), 4, &record);
  return record;
}

std::string VersionEvent(double wall_time) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_file_version("brain.Event:2");
  return event.SerializeAsString();
}

std::string ScalarEvent(double wall_time, int64_t step,
                        const std::vector<std::pair<std::string, double>>& values) {
  tensorboard::Event event;
  event.set_wall_time(wall_time);
  event.set_step(step);
  for (const auto& [tag, number] : values) {
    tensorboard::Summary::Value* value = event.mutable_summary()->add_value();
    value->set_tag(tag);
    value->set_simple_value(static_cast<float>(number));
  }
  return event.SerializeAsString();
}

absl::StatusOr<std::unique_ptr<TensorboardFile>> TensorboardFile::Create(const std::string& dir,
                                                                         const std::string& host,
                                                                         int64_t first_step) {
  PosixFileSystem files;
  CAROUSEL_RETURN_IF_ERROR(CreateDirectories(files, dir));
  const double now = Now();
  // Files of one directory are read in the order of their names.
  const std::string prefix = absl::StrCat(dir, "/events.out.tfevents.", static_cast<int64_t>(now), ".",
                                          FileNamePart(host), ".", getpid(), ".");
  std::string path;
  for (int serial = 0;; ++serial) {
    path = absl::StrCat(prefix, serial);
    CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
    if (!info.exists) break;
  }
  CAROUSEL_ASSIGN_OR_RETURN(std::unique_ptr<AppendedFile> file, AppendedFile::Open(path));
  tensorboard::Event start;
  start.set_wall_time(now);
  start.set_step(first_step);
  start.mutable_session_log()->set_status(tensorboard::SessionLog::START);
  CAROUSEL_RETURN_IF_ERROR(
      file->Append(FrameRecord(VersionEvent(now)) + FrameRecord(start.SerializeAsString())));
  return std::unique_ptr<TensorboardFile>(new TensorboardFile(std::move(file)));
}

absl::Status TensorboardFile::Scalars(int64_t step,
                                      const std::vector<std::pair<std::string, double>>& values) {
  if (values.empty()) return absl::OkStatus();
  return file_->Append(FrameRecord(ScalarEvent(Now(), step, values)));
}

absl::Status TensorboardFile::Text(int64_t step, const std::string& tag, const std::string& markdown) {
  tensorboard::Event event;
  event.set_wall_time(Now());
  event.set_step(step);
  tensorboard::Summary::Value* value = PluginValue(tag, "text", &event);
  value->mutable_metadata()->set_data_class(tensorboard::Summary::TENSOR);
  value->mutable_tensor()->set_dtype(tensorboard::Tensor::STRING);
  value->mutable_tensor()->mutable_shape()->add_dim()->set_size(1);
  value->mutable_tensor()->add_string_val(markdown);
  return file_->Append(FrameRecord(event.SerializeAsString()));
}

absl::Status TensorboardFile::Hparams(const std::vector<std::pair<std::string, std::string>>& values) {
  tensorboard::HparamsData data;
  data.mutable_session_start_info()->set_start_time_secs(Now());
  for (const auto& [name, text] : values) {
    google::protobuf::Value& value = (*data.mutable_session_start_info()->mutable_hparams())[name];
    double number = 0;
    const auto parsed = std::from_chars(text.data(), text.data() + text.size(), number);
    if (text == "true" || text == "false") {
      value.set_bool_value(text == "true");
    } else if (parsed.ec == std::errc() && parsed.ptr == text.data() + text.size() && std::isfinite(number)) {
      value.set_number_value(number);
    } else {
      value.set_string_value(ValidUtf8(text));  // file names may be anything, readers insist on UTF-8
    }
  }
  tensorboard::Event event;
  event.set_wall_time(Now());
  PluginValue("_hparams_/session_start_info", "hparams", &event)
      ->mutable_metadata()
      ->mutable_plugin_data()
      ->set_content(data.SerializeAsString());
  return file_->Append(FrameRecord(event.SerializeAsString()));
}

absl::Status TensorboardFile::HparamsEnd(bool success) {
  tensorboard::HparamsData data;
  data.mutable_session_end_info()->set_end_time_secs(Now());
  data.mutable_session_end_info()->set_status(success ? tensorboard::HparamsData::SessionEnd::SUCCESS
                                                      : tensorboard::HparamsData::SessionEnd::FAILURE);
  tensorboard::Event event;
  event.set_wall_time(Now());
  PluginValue("_hparams_/session_end_info", "hparams", &event)
      ->mutable_metadata()
      ->mutable_plugin_data()
      ->set_content(data.SerializeAsString());
  return file_->Append(FrameRecord(event.SerializeAsString()));
}
}  // namespace carousel

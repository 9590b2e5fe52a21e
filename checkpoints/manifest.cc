#include "checkpoints/manifest.h"

#include <algorithm>
#include <cstring>
#include <nlohmann/json.hpp>
#include <set>
#include <tuple>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoints/crc32c.h"
#include "checkpoints/digest.h"
#include "core/base/int_math.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;

std::string Frame(const std::string& magic, const std::string& payload) {
  const uint64_t length = payload.size();
  const uint32_t crc = UpdateCrc32c(0, payload.data(), static_cast<int64_t>(payload.size()));
  std::string bytes = magic;
  bytes.append(reinterpret_cast<const char*>(&length), 8);
  bytes += payload;
  bytes.append(reinterpret_cast<const char*>(&crc), 4);
  return bytes;
}

absl::StatusOr<std::string> Unframe(const std::string& magic, const std::string& bytes,
                                    const std::string& file) {
  if (bytes.size() < 20 || bytes.compare(0, 8, magic) != 0) {
    return absl::DataLossError(absl::StrCat(file, " is damaged: it does not begin with ", magic));
  }
  uint64_t length;
  std::memcpy(&length, bytes.data() + 8, 8);
  if (length != bytes.size() - 20) {
    return absl::DataLossError(absl::StrCat(file, " is damaged: it has ", bytes.size(),
                                            " bytes and says that its content has ", length));
  }
  std::string payload = bytes.substr(16, length);
  uint32_t crc;
  std::memcpy(&crc, bytes.data() + 16 + length, 4);
  const uint32_t actual = UpdateCrc32c(0, payload.data(), static_cast<int64_t>(payload.size()));
  if (crc != actual) {
    return absl::DataLossError(absl::StrFormat(
        "%s is damaged: the checksum of its content is %08x and should be %08x", file, actual, crc));
  }
  return payload;
}

pb::DType ToProto(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return pb::F32;
    case DType::kBF16:
      return pb::BF16;
    case DType::kF64:
      return pb::F64;
    case DType::kI32:
      return pb::I32;
    case DType::kI64:
      return pb::I64;
    case DType::kU8:
      return pb::U8;
  }
  return pb::DTYPE_UNKNOWN;
}

DType FromProto(pb::DType dtype) {
  for (const DType d : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8}) {
    if (ToProto(d) == dtype) return d;
  }
  CheckFailed(__FILE__, __LINE__, "unknown dtype");
}

pb::Kind ToProto(StateKind kind) {
  switch (kind) {
    case StateKind::kWeight:
      return pb::WEIGHT;
    case StateKind::kAdamM:
      return pb::ADAM_M;
    case StateKind::kAdamV:
      return pb::ADAM_V;
  }
  return pb::KIND_UNKNOWN;
}

StateKind FromProto(pb::Kind kind) {
  for (const StateKind k : {StateKind::kWeight, StateKind::kAdamM, StateKind::kAdamV}) {
    if (ToProto(k) == kind) return k;
  }
  CheckFailed(__FILE__, __LINE__, "unknown kind");
}

const char* NameOf(StateKind kind) {
  switch (kind) {
    case StateKind::kWeight:
      return "weight";
    case StateKind::kAdamM:
      return "exp_avg";
    case StateKind::kAdamV:
      return "exp_avg_sq";
  }
  return "?";
}

std::vector<int64_t> ShapeOf(const pb::TensorEntry& tensor) {
  return {tensor.shape().begin(), tensor.shape().end()};
}
Box BoxOf(const pb::Box& box) {
  return {{box.offset().begin(), box.offset().end()}, {box.size().begin(), box.size().end()}};
}

std::string BoxKey(const std::string& name, StateKind kind, int64_t k) {
  if (kind == StateKind::kWeight) return absl::StrCat(name, "#", k);
  return absl::StrCat(name, ".", NameOf(kind), "#", k);
}

std::string Describe(const std::string& name, StateKind kind) {
  return kind == StateKind::kWeight ? name : absl::StrCat(name, " (", NameOf(kind), ")");
}

namespace {

bool IsPlainFileName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos && name != kManifestFile;
}

// The bytes of one box in its file.
struct ByteRange {
  int64_t file, begin, end;
};

// Empty if the entry is consistent, else what is wrong.
std::string CheckTensor(const pb::Manifest& manifest, const pb::TensorEntry& tensor,
                        std::vector<ByteRange>* ranges) {
  if (tensor.name().empty()) return "has no name";
  if (!pb::Kind_IsValid(tensor.kind()) || tensor.kind() == pb::KIND_UNKNOWN) return "has an unknown kind";
  if (!pb::DType_IsValid(tensor.dtype()) || tensor.dtype() == pb::DTYPE_UNKNOWN) {
    return "has an unknown dtype";
  }
  if (tensor.shape_size() > kMaxDims) return "has too many dims";
  const std::vector<int64_t> shape = ShapeOf(tensor);
  const int64_t elem_bytes = SizeOf(FromProto(tensor.dtype()));
  int64_t tensor_bytes;
  if (NumElems(shape) < 0 || __builtin_mul_overflow(NumElems(shape), elem_bytes, &tensor_bytes)) {
    return "has an impossible shape";
  }
  std::vector<Box> boxes;
  for (const pb::Box& entry : tensor.boxes()) {
    boxes.push_back(BoxOf(entry));
    if (!BoxFits(shape, boxes.back())) return "has a box that lies outside of its shape";
    if (entry.file() < 0 || entry.file() >= manifest.files_size()) return "has a box in no file";
    // No more than tensor_bytes: this cannot overflow.
    const int64_t bytes = boxes.back().num_elems() * elem_bytes;
    const int64_t file_bytes = manifest.files(static_cast<int>(entry.file())).size();
    if (entry.byte_offset() < 0 || entry.byte_offset() % elem_bytes != 0 || bytes > file_bytes ||
        entry.byte_offset() > file_bytes - bytes) {
      return "has a box that lies outside of its file";
    }
    ranges->push_back({entry.file(), entry.byte_offset(), entry.byte_offset() + bytes});
  }
  return BoxesTile(shape, boxes) ? "" : "is not covered by its boxes exactly once";
}
}  // namespace

absl::StatusOr<pb::Manifest> ParseManifest(const std::string& payload, const std::string& file) {
  const auto fail = [&](const std::string& why) {
    return absl::DataLossError(absl::StrCat(file, " is damaged: ", why));
  };
  pb::Manifest manifest;
  if (!manifest.ParseFromString(payload)) return fail("it cannot be parsed");
  if (manifest.format() > kManifestFormat) {
    return absl::FailedPreconditionError(
        absl::StrCat(file, " has format ", manifest.format(), "; this program reads up to ", kManifestFormat,
                     ": use the version that wrote it (", manifest.writer(), ") or a later one"));
  }
  if (manifest.format() < 1) return fail("it has no format number");
  if (manifest.step() < 0 || manifest.attempt() < 0) return fail("its step or attempt is negative");
  const MeshSummary mesh = MeshOf(manifest);
  if (std::min({mesh.replicate, mesh.shard, mesh.sequence, mesh.tensor, mesh.pipe}) < 0) {
    return fail("an axis of its mesh has a negative size");
  }
  std::set<std::string> file_names;
  int64_t total = 0;
  for (const pb::FileEntry& f : manifest.files()) {
    if (!IsPlainFileName(f.name()) || !file_names.insert(f.name()).second) {
      return fail(absl::StrCat("\"", f.name(), "\" is no file name, or is there twice"));
    }
    if (f.size() < 0 || __builtin_add_overflow(total, f.size(), &total) ||
        f.size() > INT64_MAX - kBlockBytes || f.block_crc32c_size() != CeilDiv(f.size(), kBlockBytes)) {
      return fail(absl::StrCat("the size of ", f.name(), " does not fit its number of blocks"));
    }
  }
  std::set<std::pair<std::string, int>> tensor_names;
  std::vector<ByteRange> ranges;
  for (const pb::TensorEntry& tensor : manifest.tensors()) {
    const std::string problem = CheckTensor(manifest, tensor, &ranges);
    if (!problem.empty()) return fail(absl::StrCat("tensor ", tensor.name(), " ", problem));
    if (!tensor_names.emplace(tensor.name(), tensor.kind()).second) {
      return fail(absl::StrCat("tensor ", tensor.name(), " is there twice"));
    }
  }
  std::sort(ranges.begin(), ranges.end(), [](const ByteRange& a, const ByteRange& b) {
    return std::tie(a.file, a.begin) < std::tie(b.file, b.begin);
  });
  for (size_t i = 1; i < ranges.size(); ++i) {
    if (ranges[i].file == ranges[i - 1].file && ranges[i].begin < ranges[i - 1].end) {
      return fail(
          absl::StrCat("two boxes share bytes of ", manifest.files(static_cast<int>(ranges[i].file)).name()));
    }
  }
  return manifest;
}

pb::TrainState ToProto(const TrainState& state) {
  pb::TrainState message;
  message.set_step(state.step);
  message.set_consumed_sequences(state.consumed_sequences);
  message.set_consumed_tokens(state.consumed_tokens);
  message.set_seed(state.seed);
  message.set_skipped_steps(state.skipped_steps);
  message.set_wall_seconds(state.wall_seconds);
  message.set_data_fingerprint(state.data_fingerprint);
  message.set_skipped_in_row(state.skipped_in_row);
  message.set_last_skipped_step(state.last_skipped_step);
  message.set_evaluated_step(state.evaluated_step);
  message.set_validation_loss(state.validation_loss);
  for (const double loss : state.loss_window) message.add_loss_window(loss);
  for (const double norm : state.grad_norm_window) message.add_grad_norm_window(norm);
  message.set_num_rollbacks(state.num_rollbacks);
  message.set_left_out_sequences(state.left_out_sequences);
  for (const int64_t count : state.consumed_by_source) message.add_consumed_by_source(count);
  return message;
}

absl::StatusOr<TrainState> ParseState(const std::string& payload, const std::string& file) {
  const auto fail = [&](const std::string& why) {
    return absl::DataLossError(absl::StrCat(file, " is damaged: ", why));
  };
  pb::TrainState m;
  if (!m.ParseFromString(payload)) return fail("it cannot be parsed");
  if (m.step() < 0 || m.consumed_sequences() < 0 || m.consumed_tokens() < 0 || m.skipped_steps() < 0) {
    return fail("it counts something below zero");
  }
  if (m.skipped_steps() > m.step() || m.skipped_in_row() < 0 || m.skipped_in_row() > m.skipped_steps() ||
      m.last_skipped_step() < 0 || m.last_skipped_step() > m.step() || m.evaluated_step() < 0 ||
      m.evaluated_step() > m.step()) {
    return fail("it counts steps that were not done");
  }
  if (m.loss_window_size() > kMaxLossWindow || m.grad_norm_window_size() > kMaxLossWindow) {
    return fail("it has more losses than a window holds");
  }
  if (m.num_rollbacks() < 0 || m.left_out_sequences() < 0 ||
      m.left_out_sequences() > m.consumed_sequences()) {
    return fail("it counts rollbacks or sequences that cannot be");
  }
  int64_t of_sources = 0;
  for (const int64_t count : m.consumed_by_source()) {
    if (count < 0 || __builtin_add_overflow(of_sources, count, &of_sources)) {
      return fail("it has an impossible number of sequences of a source");
    }
  }
  if (m.consumed_by_source_size() > 0 && of_sources != m.consumed_sequences()) {
    return fail(absl::StrCat("its sources have ", of_sources, " sequences together and ",
                             m.consumed_sequences(), " were consumed"));
  }
  return TrainState{.step = m.step(),
                    .consumed_sequences = m.consumed_sequences(),
                    .consumed_tokens = m.consumed_tokens(),
                    .seed = m.seed(),
                    .skipped_steps = m.skipped_steps(),
                    .wall_seconds = m.wall_seconds(),
                    .data_fingerprint = m.data_fingerprint(),
                    .skipped_in_row = m.skipped_in_row(),
                    .last_skipped_step = m.last_skipped_step(),
                    .evaluated_step = m.evaluated_step(),
                    .validation_loss = m.validation_loss(),
                    .loss_window = {m.loss_window().begin(), m.loss_window().end()},
                    .grad_norm_window = {m.grad_norm_window().begin(), m.grad_norm_window().end()},
                    .num_rollbacks = m.num_rollbacks(),
                    .left_out_sequences = m.left_out_sequences(),
                    .consumed_by_source = {m.consumed_by_source().begin(), m.consumed_by_source().end()}};
}

void DescribeRun(const SaveRequest& request, pb::Manifest* manifest) {
  manifest->set_format(kManifestFormat);
  manifest->set_run_id(request.run_id);
  manifest->set_step(request.state.step);
  manifest->set_writer(request.writer);
  manifest->set_attempt(request.attempt);
  manifest->set_config_digest(ConfigDigest(request.config_text));
  pb::MeshInfo& mesh = *manifest->mutable_mesh();
  mesh.set_replicate(request.mesh.replicate);
  mesh.set_shard(request.mesh.shard);
  mesh.set_sequence(request.mesh.sequence);
  mesh.set_tensor(request.mesh.tensor);
  mesh.set_pipe(request.mesh.pipe);
}

MeshSummary MeshOf(const pb::Manifest& manifest) {
  const pb::MeshInfo& mesh = manifest.mesh();
  return {.replicate = mesh.replicate(),
          .shard = mesh.shard(),
          .sequence = mesh.sequence(),
          .tensor = mesh.tensor(),
          .pipe = mesh.pipe()};
}

uint64_t ConfigDigest(const std::string& config_text) {
  return DigestRange(config_text.data(), DType::kU8, 0, static_cast<int64_t>(config_text.size()));
}

absl::StatusOr<std::string> ReadManifestPayload(FileSystem& files, const std::string& dir) {
  const std::string path = JoinPath(dir, kManifestFile);
  CAROUSEL_ASSIGN_OR_RETURN(const FileInfo info, files.Stat(path));
  if (!info.exists) {
    return absl::NotFoundError(absl::StrCat(dir, " is no checkpoint: it has no ", kManifestFile));
  }
  if (info.is_directory) return absl::DataLossError(absl::StrCat(path, " is damaged: it is a directory"));
  CAROUSEL_ASSIGN_OR_RETURN(const std::string bytes, ReadFile(files, path, kMaxManifestBytes));
  return Unframe(kManifestMagic, bytes, path);
}

std::string ManifestJson(const pb::Manifest& manifest, const TrainState& state) {
  using Json = nlohmann::ordered_json;
  const auto hex32 = [](uint32_t v) { return absl::StrFormat("%08x", v); };
  Json json;
  json["format"] = manifest.format();
  json["run_id"] = manifest.run_id();
  json["step"] = manifest.step();
  json["unix_nanos"] = manifest.unix_nanos();
  json["writer"] = manifest.writer();
  json["attempt"] = manifest.attempt();
  json["world_size"] = manifest.world_size();
  const MeshSummary mesh = MeshOf(manifest);
  json["mesh"] = {{"replicate", mesh.replicate},
                  {"shard", mesh.shard},
                  {"sequence", mesh.sequence},
                  {"tensor", mesh.tensor},
                  {"pipe", mesh.pipe}};
  json["config_digest"] = absl::StrFormat("%016x", manifest.config_digest());
  json["state"] = {{"step", state.step},
                   {"consumed_sequences", state.consumed_sequences},
                   {"consumed_tokens", state.consumed_tokens},
                   {"seed", state.seed},
                   {"skipped_steps", state.skipped_steps},
                   {"wall_seconds", state.wall_seconds},
                   {"data_fingerprint", state.data_fingerprint},
                   {"skipped_in_row", state.skipped_in_row},
                   {"last_skipped_step", state.last_skipped_step},
                   {"evaluated_step", state.evaluated_step},
                   {"validation_loss", state.validation_loss},
                   {"loss_window", state.loss_window},
                   {"grad_norm_window", state.grad_norm_window},
                   {"num_rollbacks", state.num_rollbacks},
                   {"left_out_sequences", state.left_out_sequences},
                   {"consumed_by_source", state.consumed_by_source}};
  for (const pb::FileEntry& f : manifest.files()) {
    Json blocks = Json::array();
    for (const uint32_t crc : f.block_crc32c()) blocks.push_back(hex32(crc));
    json["files"].push_back(
        {{"name", f.name()}, {"size", f.size()}, {"crc32c", hex32(f.crc32c())}, {"block_crc32c", blocks}});
  }
  for (const pb::TensorEntry& t : manifest.tensors()) {
    Json boxes = Json::array();
    for (const pb::Box& b : t.boxes()) {
      const Box box = BoxOf(b);
      boxes.push_back({{"offset", box.offset},
                       {"size", box.size},
                       {"file", manifest.files(static_cast<int>(b.file())).name()},
                       {"byte_offset", b.byte_offset()}});
    }
    json["tensors"].push_back({{"name", t.name()},
                               {"kind", NameOf(FromProto(t.kind()))},
                               {"dtype", NameOf(FromProto(t.dtype()))},
                               {"shape", ShapeOf(t)},
                               {"digest", absl::StrFormat("%016x", t.digest())},
                               {"boxes", boxes}});
  }
  // Text that is not UTF-8 must not throw: this file is for people only.
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}
}  // namespace carousel

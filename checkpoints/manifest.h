// MANIFEST.pb and state.pb: framing, parsing without trust, and the names that the format gives to things
// (FORMAT.md). Internal to this folder.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "checkpoints/boxes.h"
#include "checkpoints/checkpoint.h"
#include "checkpoints/manifest.pb.h"

namespace carousel {

constexpr int64_t kManifestFormat = 1;
constexpr int64_t kBlockBytes = int64_t{16} << 20;
constexpr int64_t kMaxManifestBytes = int64_t{256} << 20;  // millions of boxes
constexpr int64_t kMaxDims = 8;                            // BoxesTile takes 2^dims time

constexpr int64_t kMaxLossWindow = 1024;  // losses in a TrainState

constexpr char kManifestMagic[] = "XLCKPT01";
constexpr char kStateMagic[] = "XLSTAT01";
constexpr char kManifestFile[] = "MANIFEST.pb";
constexpr char kManifestJsonFile[] = "MANIFEST.json";
constexpr char kStateFile[] = "state.pb";
constexpr char kConfigFile[] = "config.textproto";

// magic (8 bytes) | u64 length | payload | u32 CRC-32C of the payload.
std::string Frame(const std::string& magic, const std::string& payload);
// The payload, or DataLoss that names the file.
absl::StatusOr<std::string> Unframe(const std::string& magic, const std::string& bytes,
                                    const std::string& file);

// A payload that can be relied on: names and kinds are unique, shapes, boxes, offsets and sizes fit each
// other, the boxes tile every tensor, no two boxes share bytes. DataLoss otherwise; FailedPrecondition if it
// was written by a newer program.
absl::StatusOr<checkpoint::Manifest> ParseManifest(const std::string& payload, const std::string& file);
absl::StatusOr<TrainState> ParseState(const std::string& payload, const std::string& file);
checkpoint::TrainState ToProto(const TrainState& state);
// What a save knows of its run before anything is written: format, run, step, writer, attempt, mesh, config.
void DescribeRun(const SaveRequest& request, checkpoint::Manifest* manifest);
MeshSummary MeshOf(const checkpoint::Manifest& manifest);
// The digest of the text's bytes as a tensor of U8.
uint64_t ConfigDigest(const std::string& config_text);
// MANIFEST.json.
std::string ManifestJson(const checkpoint::Manifest& manifest, const TrainState& state);

// Reads MANIFEST.pb of a directory. NotFound: it has none.
absl::StatusOr<std::string> ReadManifestPayload(FileSystem& files, const std::string& dir);

checkpoint::DType ToProto(DType dtype);
checkpoint::Kind ToProto(StateKind kind);
// REQUIRES: a known value, as ParseManifest ensures.
DType FromProto(checkpoint::DType dtype);
StateKind FromProto(checkpoint::Kind kind);
const char* NameOf(StateKind kind);
std::vector<int64_t> ShapeOf(const checkpoint::TensorEntry& tensor);
Box BoxOf(const checkpoint::Box& box);

// The name of a box in the header of its shard: "name#k" for weights, "name.exp_avg#k", "name.exp_avg_sq#k".
std::string BoxKey(const std::string& name, StateKind kind, int64_t k);
// "backbone.out_norm.weight (exp_avg)"; weights without a remark. For messages.
std::string Describe(const std::string& name, StateKind kind);
}  // namespace carousel

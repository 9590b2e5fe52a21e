// Says which tensors damage has changed. A damaged block alone says little: it holds many small tensors;
// their digests tell which of them are no longer what was saved. Internal to this folder.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "checkpoints/file_system.h"
#include "checkpoints/manifest.pb.h"

namespace carousel {

// What elements [first, first + count) of box number k of a tensor contribute to its digest; `data` points to
// element `first` of the box.
uint64_t DigestOfBoxElems(const checkpoint::TensorEntry& tensor, int64_t k, int64_t first, int64_t count,
                          const char* data);

// Numbers of the tensors that have bytes in [begin, end) of a file.
std::vector<int> TensorsInBytes(const checkpoint::Manifest& manifest, int64_t file, int64_t begin,
                                int64_t end);
// Of these, those whose digest is not the manifest's; a tensor that cannot be read counts. Reads them whole,
// without regard to checksums.
std::vector<int> ChangedTensors(FileSystem& files, const std::string& dir,
                                const checkpoint::Manifest& manifest, const std::vector<int>& tensors);
// "tensor a", "tensors a, b (exp_avg)", "tensors a, b, c, d and 5 more, 9 in all"; empty for none.
std::string NameTensors(const checkpoint::Manifest& manifest, const std::vector<int>& tensors);

// "; it holds tensors a and b", to end a message about a file; empty if it holds none.
std::string HeldBy(const checkpoint::Manifest& manifest, int64_t file);

// DataLoss: "dir/file: block 3 (bytes 50331648 to 67108864) is damaged: <why>; changed: tensor a". `changed`:
// of the tensors in the block, those that are not what was saved.
absl::Status DamagedBlock(const std::string& dir, const checkpoint::Manifest& manifest, int64_t file,
                          int64_t block, const std::string& why, const std::vector<int>& changed);
}  // namespace carousel

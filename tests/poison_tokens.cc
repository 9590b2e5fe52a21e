// Makes training tokens that are easy to learn, but for those of some steps of a run, which are noise: a real
// spike of the loss, at known steps.
//   poison_tokens PREFIX NUM_TOKENS SEQUENCE_LENGTH GLOBAL_BATCH SEED STEP...     steps are counted from 1
#include <cstdio>
#include <cstdlib>
#include <string>
#include <vector>

#include "core/base/random.h"
#include "core/data/sampler.h"
#include "core/data/token_writer.h"
#include "core/text/tokenizer.h"

namespace carousel {
namespace {

int Fail(const absl::Status& status) {
  std::fprintf(stderr, "%s\n", std::string(status.message()).c_str());
  return 1;
}

int Make(const std::string& prefix, int64_t num_tokens, int64_t T, int64_t batch, uint64_t seed,
         const std::vector<int64_t>& steps) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < num_tokens; ++i) {
    // A walk through eight letters, with some noise to make losses differ.
    const int64_t noise = RandomUniform(1, 2, static_cast<uint64_t>(i)) < 0.2 ? 3 : 0;
    ids.push_back(static_cast<int32_t>('a' + (i + noise) % 8));
  }
  const auto sampler = Sampler::Create({{.name = prefix, .num_tokens = num_tokens, .weight = 1}}, T, seed);
  if (!sampler.ok()) return Fail(sampler.status());
  for (const int64_t step : steps) {
    for (int64_t n = (step - 1) * batch; n < step * batch; ++n) {
      // The last token of a window is the first of the next: left as it is.
      const int64_t begin = sampler->At(n).index * T;
      for (int64_t i = begin + 1; i < begin + T; ++i) {
        ids[static_cast<size_t>(i)] =
            static_cast<int32_t>(RandomUint64(3, 4, static_cast<uint64_t>(i)) % 256);
      }
    }
  }
  const auto writer = TokenFileWriter::Create(prefix, ByteTokenizer(), {});
  if (!writer.ok()) return Fail(writer.status());
  if (const absl::Status status = (*writer)->Append(ids, num_tokens); !status.ok()) return Fail(status);
  (*writer)->CloseDocument();
  const absl::Status status = (*writer)->Commit();
  return status.ok() ? 0 : Fail(status);
}
}  // namespace
}  // namespace carousel

int main(int argc, char** argv) {
  if (argc < 6) {
    std::fprintf(stderr, "poison_tokens PREFIX NUM_TOKENS SEQUENCE_LENGTH GLOBAL_BATCH SEED STEP...\n");
    return 64;
  }
  std::vector<int64_t> steps;
  for (int i = 6; i < argc; ++i) steps.push_back(std::atoll(argv[i]));
  return carousel::Make(argv[1], std::atoll(argv[2]), std::atoll(argv[3]), std::atoll(argv[4]),
                        static_cast<uint64_t>(std::atoll(argv[5])), steps);
}

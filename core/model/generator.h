// Generator: text from a language model with constant memory. The prompt is read in pieces with the
// states carried between them, then every new token is one recurrent step.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "core/device_memory.h"
#include "core/model/language_model.h"

namespace carousel {

struct SamplingSpec {
  double temperature = 1;       // 0: greedy, ties go to the lowest id
  int64_t top_k = 0;            // sample among the k most likely ids (ties: lowest ids first); 0: all
  double top_p = 1;             // sample among the fewest most likely ids whose probabilities sum to >= top_p
  uint64_t seed = 0;            // the draw of a token is f(seed, its position in the text)
  int64_t num_allowed_ids = 0;  // ids >= this are never sampled (a padded vocabulary); 0: all are allowed
};

// The id sampled from `logits` (vocab_size values) for the token at `position`. A pure function.
int32_t SampleToken(const std::vector<double>& logits, const SamplingSpec& spec, int64_t position);

struct GenerateArgs {
  std::vector<int32_t> prompt;  // not empty, ids in [0, vocab_size)
  int64_t max_new_tokens = 0;
  std::vector<int32_t> stop_ids = {};  // generation ends before one of these is emitted
  int32_t reset_id = -1;  // an input equal to this id starts a new document: the state is forgotten
  SamplingSpec sampling = {};
};

class Generator {
 public:
  static constexpr int64_t kPrefillTokens = 256;  // longest piece of a prompt read at once

  // `model` must be bound on `device` (for training or not) and outlive the generator; between calls of the
  // generator it may be used for other things. Takes memory for one sequence's states from the device.
  Generator(LanguageModel& model, Device& device);

  // Generates from the zero state. on_token (optional) is called for every new token; false ends generation.
  // Returns the new tokens.
  std::vector<int32_t> Generate(const GenerateArgs& args, const std::function<bool(int32_t)>& on_token = {});

  // The parts of Generate, for callers that choose tokens themselves.
  void Reset();  // forget everything
  // Reads tokens and returns the soft-capped logits after the last one.
  std::vector<double> Feed(const std::vector<int32_t>& ids, int32_t reset_id = -1);

 private:
  LanguageModel& model_;
  Device& device_;
  int64_t piece_tokens_;
  std::vector<LayerState> states_;
  Tensor ids_;     // (piece_tokens) i32
  Tensor resets_;  // (piece_tokens) u8
  Tensor logits_;  // (1, V) wide
  std::unique_ptr<DeviceMemory> memory_;
};
}  // namespace carousel

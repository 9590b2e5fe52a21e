// `carousel train --profile steps:20-23,ranks:0,8`: what a few steps of a run spend their time on.
//   CPU, emulated GPU   a table of ops, printed, and a trace for chrome://tracing or ui.perfetto.dev:
//                       <run_dir>/profile/steps-20-23.rank-0.{txt,json}
//   CUDA                cudaProfilerStart and cudaProfilerStop around the steps: for
//                       nsys profile --capture-range=cudaProfilerApi ... carousel train --profile ...
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/status.h"
#include "absl/status/statusor.h"
#include "core/comm/mesh.h"
#include "launcher/report/op_profiler.h"

namespace carousel {

struct ProfileSpec {
  int64_t first_step = 0, last_step = 0;  // counted from 1, both included
  std::vector<int64_t> ranks = {0};
};
// "steps:20-23", "steps:20", "steps:20-23,ranks:0,8". Empty: nothing to profile.
absl::StatusOr<std::optional<ProfileSpec>> ParseProfile(const std::string& text);
// Whether the run has these steps and ranks.
absl::Status CheckProfile(const ProfileSpec& spec, int64_t total_steps, int64_t world_size);
// Whether a run that has so many steps behind it will still take them.
absl::Status CheckProfileIsAhead(const ProfileSpec& spec, int64_t finished_steps);

class RunProfiler {
 public:
  // For a rank that the spec names. device: must outlive this.
  RunProfiler(const ProfileSpec& spec, Device& device, std::string run_dir, int64_t rank, std::string host);
  ~RunProfiler();

  // What the trainer shall compute on.
  Device& device() { return ops_ != nullptr ? *ops_ : device_; }
  // Around a step that is the number `step`, counted from 1. A step that did not count (the run goes back)
  // has no AfterStep.
  void BeforeStep(int64_t step);
  // After the last one what there is to tell people; empty otherwise. An error if files cannot be written.
  absl::StatusOr<std::string> AfterStep(int64_t step, const Mesh& mesh);

 private:
  absl::StatusOr<std::string> Finish(const Mesh& mesh);

  const ProfileSpec spec_;
  Device& device_;
  const std::string run_dir_, host_;
  const int64_t rank_;
  std::unique_ptr<OpProfiler> ops_;  // null on CUDA
  bool on_ = false, done_ = false;
  int64_t in_step_ = 0;  // 0: in none that is profiled
  int64_t num_steps_ = 0;
  double step_start_ = 0, seconds_ = 0, first_start_ = 0;
};
}  // namespace carousel

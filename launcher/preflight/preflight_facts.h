// What a rank knows before a run begins, about itself and its machine: read or measured once by each rank
// (preflight_read, preflight_probes, preflight_storage), sent to all, judged by pure functions
// (preflight_checks.h). As text it is JSON, so that a rank of another build can still be told apart.
//
// -1 and empty texts mean that the system does not say, unless something else is noted.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "absl/status/statusor.h"

namespace carousel {

constexpr int64_t kUnlimited = INT64_MAX;  // of a limit

// One GPU of the machine, as the driver's management library sees it.
struct GpuFacts {
  int64_t index = 0;  // in the order of PCI addresses
  std::string name = {}, uuid = {}, bus_id = {};
  std::string error = {};  // why it does not answer; nothing else is known then
  int64_t memory_total_bytes = -1, memory_used_bytes = -1;
  int64_t ecc_enabled = -1;                          // 0, 1
  int64_t ecc_corrected = -1, ecc_uncorrected = -1;  // since the driver was loaded
  int64_t ecc_uncorrected_ever = -1;
  int64_t rows_remapped = -1, remap_pending = -1, remap_failed = -1;  // the last two: 0, 1
  int64_t throttle_reasons = -1;                                      // bits: nvml_api.h
  int64_t sm_mhz = -1, max_sm_mhz = -1;
  int64_t temperature_c = -1;
  int64_t power_mw = -1, power_limit_mw = -1, default_power_limit_mw = -1;
  int64_t pcie_width = -1, max_pcie_width = -1;  // lanes
  int64_t persistence = -1;                      // 0, 1
  int64_t num_processes = -1;                    // that compute on it, of this container at least
  std::vector<int64_t> xids = {};                // errors that the driver reported while the checks ran
};

struct GpusOfMachine {
  bool asked = false;        // false: nobody wanted to know
  std::string missing = {};  // why the library cannot be used; empty: it can
  std::string driver = {}, cuda_driver = {};
  std::vector<GpuFacts> gpus = {};
};

// The device that this rank computes on, and what it did in the trial.
struct DeviceFacts {
  std::string name = {};   // "cpu", "cuda:0"; empty: there was no trial
  std::string kind = {};   // devices of equal kind shall be equally fast and give equal bits
  std::string uuid = {};   // of a GPU, if it is known which one it is
  std::string error = {};  // why there is no device
  int64_t memory_total_bytes = -1, memory_free_bytes = -1;
  int64_t threads = 0;      // of the CPU
  std::string dtype = {};   // of the trial product
  int64_t size = 0;         // n of the n x n x n product
  double flops = 0;         // per second
  int64_t repeats = 0;      // of the product
  int64_t different = 0;    // repeats whose bits differ from the first
  std::string digest = {};  // of the first result
};

// One sum over the ranks of one communicator.
struct ReduceFacts {
  std::string axis = {};              // "world", "replicas", "tensor", ...
  std::string kind = {};              // what was summed: "f32 on the device", "i64"
  std::vector<int64_t> members = {};  // ranks of the job that took part
  int64_t num_wrong = 0;              // elements with a wrong sum
  int64_t first_wrong = -1;           // which
  double expected = 0, got = 0;       // there
  int64_t bytes = 0;                  // of the tensor; 0: no rate was measured
  double seconds = 0;
};

// An exchange with another machine.
struct PairFacts {
  int64_t peer = 0;   // rank
  int64_t bytes = 0;  // in each direction
  double seconds = 0;
  int64_t num_wrong = 0;  // bytes that arrived wrong
};

struct StorageFacts {
  bool asked = false;
  std::string directory = {};
  std::string file_system = {};  // "ext4", "nfs", ... or a number
  std::string error = {};        // what the directory cannot do; the same on all ranks
  std::string lock_error = {};   // why locks do not work
  int64_t free_bytes = -1, total_bytes = -1;
  int64_t existing_bytes = 0;  // of the checkpoints that the directory holds
  int64_t write_bytes = 0;     // written, synced and renamed by this rank; 0: it did not
  double write_seconds = 0;
  std::string write_error = {};
};

struct TokenFileFacts {
  std::string path = {};  // of one file
  int64_t bytes = -1;
  std::string digest = {};  // of its size, its begin and blocks spread over it
  std::string error = {};
};

struct NetworkInterface {
  std::string name = {};
  bool up = false;
  std::vector<std::string> addresses = {};
};

struct MachineFacts {
  std::string kernel = {};          // "Linux 6.1.0"
  std::string cpu = {};             // model
  std::string simd = {};            // "AVX-512 with AMX"
  std::vector<int64_t> cores = {};  // on which this rank may run: one logical CPU for each
  int64_t machine_cores = -1;       // that the machine has
  int64_t memory_bytes = -1, memory_available_bytes = -1;
  int64_t cgroup_limit_bytes = -1;  // of memory; -1: none
  int64_t cgroup_used_bytes = -1;
  int64_t open_files = -1, locked_bytes = -1, file_bytes = -1, address_bytes = -1, core_bytes = -1,
          processes = -1;
  std::string core_pattern = {};
  int64_t shm_total_bytes = -1, shm_free_bytes = -1;  // /dev/shm; -1: there is none
  std::vector<NetworkInterface> interfaces = {};
  bool infiniband = false;
  bool root = false;
};

struct RankFacts {
  int64_t rank = 0, world = 1;
  std::string host = {};
  int64_t local_rank = 0, local_size = 1;
  std::string build = {};
  std::string launcher = {};                          // "mpirun (Open MPI)"; empty: started alone
  std::map<std::string, std::string> libraries = {};  // "MPI" -> "Open MPI v4.1.4"
  std::map<std::string, std::string> variables = {};  // of the environment, those that checks ask for
  int64_t default_threads = 1;                        // cores for this rank
  MachineFacts machine = {};
  GpusOfMachine gpus = {};
  DeviceFacts device = {};
  std::vector<ReduceFacts> sums = {};
  std::vector<PairFacts> pairs = {};
  bool clock_asked = false;
  double clock_offset_seconds = 0;       // of this rank's clock to rank 0's
  double clock_uncertainty_seconds = 0;  // half the time of the round trip
  StorageFacts storage = {};
  std::vector<TokenFileFacts> tokens = {};
};

std::string ToText(const RankFacts& facts);  // JSON in one line
// DataLoss if it is no such text.
absl::StatusOr<RankFacts> ParseRankFacts(const std::string& text);
}  // namespace carousel

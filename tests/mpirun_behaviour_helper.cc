// A rank that does one thing, for mpirun_behaviour_test.sh:
//   mpirun_behaviour_helper WHAT DIRECTORY [CODE]
//     return      all ranks finalize and return CODE
//     exit        rank 1 leaves by _exit(CODE) without finalize, the others wait
//     abort       rank 1 calls MPI_Abort with CODE, the others wait
//     signal      rank 1 dies by signal CODE, the others wait
//     wait        all wait; SIGTERM ends them with 143
//     stubborn    all wait and only note SIGTERM
//     leave       all wait; SIGUSR2 makes them finalize and return CODE
//     allreduce   4 MiB of f32 are summed twice; DIRECTORY/sum.RANK holds a hash of the bits of both sums
// Waiting ranks append to DIRECTORY/rank.RANK: "cores N", "up", and "signal N" for each signal, each with the
// time by the monotonic clock, and keep the time at which they were last alive in DIRECTORY/alive.RANK.
#include <mpi.h>
#include <sched.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>
#include <vector>

namespace {

double Seconds() {
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Note(const std::string& path, const std::string& line) {
  std::FILE* file = std::fopen(path.c_str(), "a");
  if (file == nullptr) std::abort();
  std::fprintf(file, "%s %.3f\n", line.c_str(), Seconds());
  std::fclose(file);
}

constexpr int kSignals[] = {SIGTERM, SIGUSR1, SIGUSR2, SIGINT};

sigset_t SignalSet() {
  sigset_t set;
  sigemptyset(&set);
  for (const int signal : kSignals) sigaddset(&set, signal);
  return set;
}

// Until SIGUSR2 (leave), SIGTERM (neither leave nor stubborn) or SIGKILL.
void WaitForSignals(const std::string& directory, int rank, bool stubborn, bool leave) {
  const std::string path = directory + "/rank." + std::to_string(rank);
  const std::string alive = directory + "/alive." + std::to_string(rank);
  cpu_set_t cores;
  CPU_ZERO(&cores);
  sched_getaffinity(0, sizeof(cores), &cores);
  Note(path, "cores " + std::to_string(CPU_COUNT(&cores)));
  Note(path, "up");
  const sigset_t set = SignalSet();
  const timespec moment{.tv_sec = 0, .tv_nsec = 20000000};
  while (true) {
    if (std::FILE* file = std::fopen((alive + ".tmp").c_str(), "w")) {
      std::fprintf(file, "%.3f\n", Seconds());
      std::fclose(file);
      std::rename((alive + ".tmp").c_str(), alive.c_str());
    }
    const int signal = sigtimedwait(&set, nullptr, &moment);
    if (signal < 0) continue;
    Note(path, "signal " + std::to_string(signal));
    if (signal == SIGTERM && !stubborn && !leave) _exit(143);
    if (signal == SIGUSR2 && leave) return;
  }
}

uint64_t Hash(const std::vector<float>& values) {
  uint64_t hash = 14695981039346656037u;
  for (const float value : values) {
    uint32_t bits = 0;
    std::memcpy(&bits, &value, sizeof(bits));
    hash = (hash ^ bits) * 1099511628211u;
  }
  return hash;
}

void SumTwice(const std::string& path, int rank) {
  std::vector<float> mine(1 << 20), sum(mine.size());
  for (size_t i = 0; i < mine.size(); ++i) {
    mine[i] = 1.0f / static_cast<float>(1 + (i * 7919 + static_cast<size_t>(rank) * 104729) % 1000);
  }
  for (int turn = 0; turn < 2; ++turn) {
    MPI_Allreduce(mine.data(), sum.data(), static_cast<int>(sum.size()), MPI_FLOAT, MPI_SUM, MPI_COMM_WORLD);
    std::FILE* file = std::fopen(path.c_str(), "a");
    if (file == nullptr) std::abort();
    std::fprintf(file, "%016lx\n", Hash(sum));
    std::fclose(file);
  }
}
}  // namespace

int main(int argc, char** argv) {
  if (argc < 3) return 64;
  const std::string what = argv[1];
  const int code = argc > 3 ? std::atoi(argv[3]) : 0;
  const bool dies = what == "exit" || what == "abort" || what == "signal";
  const bool waits = dies || what == "wait" || what == "stubborn" || what == "leave";
  // Before MPI starts its threads.
  const sigset_t set = SignalSet();
  if (waits) sigprocmask(SIG_BLOCK, &set, nullptr);
  MPI_Init(&argc, &argv);
  int rank = 0;
  MPI_Comm_rank(MPI_COMM_WORLD, &rank);
  const std::string directory = argv[2];
  if (what == "allreduce") SumTwice(directory + "/sum." + std::to_string(rank), rank);
  if (dies) {
    // The others wait by then.
    MPI_Barrier(MPI_COMM_WORLD);
    if (rank == 1) {
      usleep(300000);
      Note(directory + "/rank.1", "ends");
      if (what == "exit") _exit(code);
      if (what == "abort") MPI_Abort(MPI_COMM_WORLD, code);
      sigprocmask(SIG_UNBLOCK, &set, nullptr);
      std::signal(code, SIG_DFL);
      std::raise(code);
    }
  }
  if (waits) WaitForSignals(directory, rank, /*stubborn=*/dies || what == "stubborn", what == "leave");
  MPI_Finalize();
  return code;
}

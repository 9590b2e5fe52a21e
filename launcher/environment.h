// Where this process runs: alone or as one rank of a job, on which cores. The only place that reads
// environment variables, and the owner of MPI or of the connections that stand in for it. Everything else
// asks the Environment it is given.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "absl/status/statusor.h"
#include "core/comm/communicator.h"
#include "parallel/session.h"
#include "parallel/tcp_node.h"

namespace carousel {

// What the environment variables of a launcher (mpirun, mpiexec, srun) say, before any MPI call.
struct LaunchInfo {
  enum class Kind : uint8_t { kSingle, kOpenMpi, kPmi, kSlurmWithoutMpi, kTcp };
  Kind kind = Kind::kSingle;
  std::string launcher = "none";                   // for messages: "mpirun (Open MPI)", "srun", ...
  int64_t announced_rank = 0, announced_size = 1;  // size 0: a launcher that does not say
  bool bound_by_default = false;  // Open MPI pinned this process to a core though nobody asked for it
};
using GetEnv = std::function<const char*(const char* name)>;
LaunchInfo DetectLaunch(const GetEnv& get_env);

// A run whose ranks talk over TCP, which the first four of these variables of every rank's environment
// describe:
//   CAROUSEL_RENDEZVOUS  tcp://HOST:PORT of rank 0, or file:/DIRECTORY that all ranks see
//   CAROUSEL_RANK        0 ... size - 1
//   CAROUSEL_WORLD_SIZE  how many ranks there are
//   CAROUSEL_RUN_SECRET  the same on all ranks, unknown to others: openssl rand -hex 32
//   CAROUSEL_INTERFACE   may be left out: the network of the run, as eth0 or 10.1.0.0/16
// Nothing if none of them is set, or the secret alone (carousel launch gives every job one); InvalidArgument
// if only some are, or one is wrong. They win over what a launcher says, which then only starts the
// processes.
absl::StatusOr<std::optional<TcpNodeOptions>> DetectTcpLaunch(const GetEnv& get_env);

// Why a job must not go on: a launcher announced announced_size ranks, but MPI (or its absence) gives
// actual_size. OK if they agree.
absl::Status CheckLaunch(const LaunchInfo& launch, int64_t actual_size, bool has_mpi,
                         const std::string& library);

// Which cores of the machine a rank computes on.
struct CoreShare {
  std::vector<int> cores;  // logical CPU numbers to run on
  int64_t threads = 1;     // the default number of threads, at least 1
  double own_cores = 0;    // how many cores it has if all compute at once, parts included; 0: not known
};
// cores_of_rank[i]: the cores that local rank i may use (one logical CPU per physical core), of all ranks of
// one machine. A core that several ranks may use counts for each of them in part; quota (0: none) is the
// number of cores that the machine's container may keep busy, for all its ranks together. Ranks that may all
// use the same cores, at least one for each, are told disjoint ones; otherwise `cores` are all that the rank
// may use.
CoreShare ShareCores(const std::vector<std::vector<int>>& cores_of_rank, int64_t local_rank, int64_t quota);
// Cores allowed by the text of a cgroup's cpu.max ("150000 100000": 2, rounded up); 0: no limit.
int64_t ParseCpuMax(const std::string& cpu_max);

class Environment {
 public:
  // Starts MPI if a launcher started this process, or meets the other ranks over TCP if its variables say so
  // (a process started alone does neither), and sets the rank that log lines and failed checks print. Errors
  // name the launcher and the fix.
  // waiting: PeerOptions::waiting of all communicators.
  using Waiting = std::function<void(const std::string& call, const std::vector<int>& ranks)>;
  static absl::StatusOr<std::unique_ptr<Environment>> Start(const Waiting& waiting = nullptr);
  // Finish(kExitFailure), if it was not called: right only where every rank is about to do the same.
  ~Environment();

  Communicator& world() { return *world_; }  // size 1 for a process alone
  Communicator& local() { return session_ != nullptr ? session_->local() : *self_; }  // of this machine
  int rank() const { return world_->rank(); }
  int size() const { return world_->size(); }
  int local_rank() const { return local_rank_; }  // among the ranks on this machine
  int local_size() const { return local_size_; }
  const std::string& host() const { return host_; }
  // Who started the ranks: "mpirun (Open MPI)", "srun", ...; empty for a process started alone.
  std::string launcher() const {
    return launch_.kind == LaunchInfo::Kind::kSingle ? std::string() : launch_.launcher;
  }
  // CPU threads per rank where parallel.threads is 0: cores of this machine that we may use / ranks on it, at
  // least 1. Honours cgroup limits, taskset and an explicit --bind-to; the default binding of Open MPI (every
  // rank on one core) is undone first.
  int64_t default_threads() const { return default_threads_; }
  // CoreShare::own_cores: with more threads than these, ranks take turns on the cores.
  double own_cores() const { return own_cores_; }
  // For the log: "rank 0 of 2 on node7 (2 here), 4 cores for each, started by mpirun (Open MPI), Open MPI
  // v4.1.4".
  std::string Describe() const;

  // What the launcher's variables say, whether or not Start succeeds.
  static LaunchInfo Announced();
  // Value of an environment variable; empty if unset.
  static std::string Variable(const std::string& name);
  // All of them, "NAME=value".
  static std::vector<std::string> AllVariables();

  // Call at the end of main on every rank; returns the exit code for main. A rank that fails alone (exit_code
  // != 0 while others go on) ends the others after two seconds.
  int Finish(int exit_code);

 private:
  Environment() = default;
  absl::Status StartTcp(const TcpNodeOptions& options);
  absl::Status StartMpi();
  // Finds the cores of this rank among the ranks of its machine.
  void ShareMachine(Communicator& local);

  Waiting waiting_;
  LaunchInfo launch_;
  std::unique_ptr<Session> session_;    // null for a process alone
  std::unique_ptr<Communicator> self_;  // not null for a process alone
  Communicator* world_ = nullptr;       // one of the two
  int local_rank_ = 0, local_size_ = 1;
  std::string host_;
  int64_t default_threads_ = 1;
  double own_cores_ = 0;
  bool finished_ = false;
};
}  // namespace carousel

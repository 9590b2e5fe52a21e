// Watchdog: a thread that ends this process when it hangs, whatever the others do: in a collective call, a
// kernel, a read, a lock. Before it does, it says where: the last calls of every communicator, the stacks of
// all threads, and, with the records that the other ranks left beside its own (flight_report.h), which rank
// they wait for.
//
// It also ends a rank that was told to end (SIGTERM: another rank has died) and does not get on: within
// kEndSeconds, with kExitTerminated.
//
// Nothing of this waits for ever: files are written by a thread that may stay behind on a dead disk, and an
// alarm ends the process if even that does not work (kFuseSeconds).
#pragma once
#include <atomic>
#include <condition_variable>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "configs/run_spec.h"
#include "core/comm/communicator.h"
#include "launcher/watch/flight_record.h"
#include "launcher/watch/hang_timer.h"

namespace carousel {

class Watchdog {
 public:
  static constexpr double kEndSeconds = 5;
  static constexpr double kFuseSeconds = 9;  // from the expiry of a limit to the end of the process, at most
  using Section = HangTimer::Section;

  struct Options {
    // Told once, shortly before the process ends (AttemptRecorder::Ending). May be called by any thread.
    std::function<void(int exit_code, const std::string& reason,
                       const std::vector<std::string>& suspect_hosts)>
        ending = nullptr;
    std::function<bool()> end_requested = nullptr;  // EndRequested; null: never
    // What else the record shall hold: the state of the machine's devices, a line each. Null: nothing.
    std::function<std::string()> machine = nullptr;
    // Gives up what a watched communicator has under way, the last thing before the process ends: a device
    // that waits in a call could keep it from ending. By any thread; null: nothing is done.
    std::function<void(Communicator&)> abandon = nullptr;
    double tick_seconds = 0.1;
    double gather_seconds = 3;                // to wait for the records of other ranks
    std::function<double()> clock = nullptr;  // tests; null: a steady clock, in seconds
    std::function<void(int)> exit = nullptr;  // tests; null: _exit
  };
  // Starts the thread, with the limit of the start. It takes no signals but its own.
  explicit Watchdog(const Options& options);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;

  // ---- what is known about the run, as it becomes known
  // hosts: of all ranks; may be empty.
  void Identify(int rank, int size, const std::string& host, const std::vector<std::string>& hosts);
  // Where records go: ATTEMPT_DIR/flight, or in the run directory. Made when it is needed. Empty: none.
  void SetDirectory(const std::string& directory);
  void SetLimits(const RunSpec::Watchdog& limits);
  // Its calls are signs of progress, and part of the record. `kind` distinguishes communicators of one name.
  // Until ForgetCommunicators, which must come before the first of them ends.
  void Watch(Communicator& communicator, const std::string& kind = "");
  void ForgetCommunicators();
  HangTimer& timer() { return timer_; }

  // ---- from the loop
  void Enter(Section section) { timer_.Enter(section, Now()); }
  void Progress() { timer_.Progress(Now()); }
  void Allow(double seconds) { timer_.Allow(seconds); }
  // For PeerOptions::waiting.
  void Waiting(const std::string& call, const std::vector<int>& ranks);

  // Ends the process with this code: somebody else found that the run cannot go on. Returns only where
  // another thread is ending the process already.
  void GiveUp(int exit_code, const std::string& why, const std::vector<std::string>& suspect_hosts);
  // The same, with the record that a hang leaves: heartbeats found that another rank does not answer. It
  // waits for the records of nobody.
  void GiveUpWithRecord(int exit_code, const std::string& why, const std::vector<std::string>& suspect_hosts);

 private:
  struct Watched {
    Communicator* communicator;
    std::string kind;
    std::vector<int> members;
  };
  double Now() const;
  void Run();
  int64_t NumCalls();
  bool MustEnd(double now);
  FlightRecord Compose(const HangTimer::Expiry& expiry);
  void WriteRecord(const FlightRecord& record, const std::string& stacks, const std::string& directory);
  void Expire(const HangTimer::Expiry& expiry);
  void End(int exit_code, const std::string& reason, const std::vector<std::string>& suspect_hosts);

  const Options options_;
  HangTimer timer_;
  std::atomic<bool> enabled_ = true, ending_ = false;

  std::mutex mutex_;  // guards what follows
  std::condition_variable stopped_;
  bool stop_ = false;
  int rank_ = -1, size_ = 1;
  std::string host_, directory_;
  std::vector<std::string> hosts_;
  std::vector<Watched> watched_;
  std::string waits_in_;
  std::vector<int> waits_for_;

  // Of the thread.
  int64_t num_calls_ = 0;
  double end_requested_at_ = -1;
  std::thread thread_;
};

// Of a watchdog that may be missing.
inline void EnterSection(Watchdog* watchdog, Watchdog::Section section) {
  if (watchdog != nullptr) watchdog->Enter(section);
}
}  // namespace carousel

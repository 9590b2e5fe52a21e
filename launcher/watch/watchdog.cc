#include "launcher/watch/watchdog.h"

#include <fcntl.h>
#include <pthread.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <filesystem>
#include <memory>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"
#include "absl/strings/strip.h"
#include "core/base/check.h"
#include "core/base/exit_code.h"
#include "launcher/watch/flight_report.h"
#include "launcher/watch/thread_stacks.h"

namespace carousel {
namespace {
constexpr double kStackSeconds = 3, kWriteSeconds = 2, kRecordSeconds = 1, kReportSeconds = 2;
constexpr double kPrintSeconds = 1, kAbandonSeconds = 2, kMachineSeconds = 1;
constexpr int64_t kNumCallsPrinted = 4;

// A handler of a signal has no argument: the code that the fuse ends the process with.
std::atomic<int> fuse_exit_code{kExitTransport};
extern "C" void EndByFuse(int) { _exit(fuse_exit_code.load()); }

void LightFuse(int exit_code) {
  fuse_exit_code = exit_code;
  struct sigaction action = {};
  action.sa_handler = EndByFuse;
  sigemptyset(&action.sa_mask);
  sigaction(SIGALRM, &action, nullptr);
  sigset_t alarm_only;
  sigemptyset(&alarm_only);
  sigaddset(&alarm_only, SIGALRM);
  pthread_sigmask(SIG_UNBLOCK, &alarm_only, nullptr);
  alarm(static_cast<unsigned>(Watchdog::kFuseSeconds));
}

// Runs fn in a thread of its own for at most so long; a thread that hangs is left behind. `fn` owns what it
// uses. True if it has come to its end.
bool RunBounded(double seconds, std::function<void()> fn) {
  struct Shared {
    std::mutex mutex;
    std::condition_variable changed;
    bool done = false;
  };
  const auto shared = std::make_shared<Shared>();
  std::thread([shared, fn = std::move(fn)] {
    fn();
    const std::lock_guard<std::mutex> lock(shared->mutex);
    shared->done = true;
    shared->changed.notify_all();
  }).detach();
  std::unique_lock<std::mutex> lock(shared->mutex);
  return shared->changed.wait_for(lock, std::chrono::duration<double>(seconds), [&] { return shared->done; });
}

void Print(const std::string& text) {
  size_t done = 0;
  while (done < text.size()) {
    const ssize_t n = write(STDERR_FILENO, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    if (n <= 0) return;
    done += static_cast<size_t>(n);
  }
}

// What `ask` says, or nothing if that takes too long.
std::string AskBounded(const std::function<std::string()>& ask) {
  if (ask == nullptr) return "";
  struct Answer {
    std::mutex mutex;
    std::string text;
  };
  const auto answer = std::make_shared<Answer>();
  RunBounded(kMachineSeconds, [answer, ask] {
    const std::string text = ask();
    const std::lock_guard<std::mutex> lock(answer->mutex);
    answer->text = text;
  });
  const std::lock_guard<std::mutex> lock(answer->mutex);
  return answer->text;
}

// The same where nobody may take it: a pipe that is full must not keep the records from being written.
void PrintBounded(const std::string& text, bool* heard) {
  *heard = *heard && RunBounded(kPrintSeconds, [text] { Print(text); });
}

// Readable by the group, whole or not at all.
void WriteWhole(const std::string& path, const std::string& text) {
  const std::string temporary = absl::StrCat(path, ".", getpid(), ".tmp");
  const int fd = open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC | O_NOFOLLOW, 0640);
  if (fd < 0) return;
  size_t done = 0;
  bool good = true;
  while (good && done < text.size()) {
    const ssize_t n = write(fd, text.data() + done, text.size() - done);
    if (n < 0 && errno == EINTR) continue;
    good = n > 0;
    if (good) done += static_cast<size_t>(n);
  }
  good = close(fd) == 0 && good;
  if (!good || rename(temporary.c_str(), path.c_str()) != 0) unlink(temporary.c_str());
}

void MakeDirectories(const std::string& path) {
  std::string made;
  for (const absl::string_view part : absl::StrSplit(path, '/')) {
    absl::StrAppend(&made, part, "/");
    mkdir(made.c_str(), 0750);
  }
}

// "rank 2 (node7): left no record: ...": the first suspect of a report.
std::string FirstSuspect(const std::string& report) {
  for (absl::string_view line : absl::StrSplit(report, '\n')) {
    if (absl::ConsumePrefix(&line, "suspect: ")) return std::string(line);
  }
  return "";
}
}  // namespace

Watchdog::Watchdog(const Options& options)
    : options_(options),
      timer_(
          options.clock
              ? options.clock()
              : std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count()) {
  PrepareThreadStacks();
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { Run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

Watchdog::~Watchdog() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    stop_ = true;
  }
  stopped_.notify_all();
  thread_.join();
}

double Watchdog::Now() const {
  if (options_.clock) return options_.clock();
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

void Watchdog::Identify(int rank, int size, const std::string& host, const std::vector<std::string>& hosts) {
  const std::lock_guard<std::mutex> lock(mutex_);
  rank_ = rank;
  size_ = size;
  host_ = host;
  hosts_ = hosts;
}

void Watchdog::SetDirectory(const std::string& directory) {
  std::error_code error;
  const std::filesystem::path absolute = std::filesystem::absolute(directory, error);
  const std::lock_guard<std::mutex> lock(mutex_);
  directory_ = directory.empty() || error ? directory : absolute.string();
}

void Watchdog::SetLimits(const RunSpec::Watchdog& limits) {
  enabled_ = limits.enabled;
  HangTimer::Limits scaled{
      .least = {limits.setup_seconds, limits.step_seconds, std::max(limits.step_seconds, limits.save_seconds),
                limits.evaluation_seconds, limits.sample_seconds, limits.save_seconds, limits.finish_seconds},
      .unknown = limits.setup_seconds,
      .scale = limits.scale};
  for (double& seconds : scaled.least) seconds *= limits.scale;
  scaled.unknown *= limits.scale;
  timer_.SetLimits(scaled, Now());
}

void Watchdog::Watch(Communicator& communicator, const std::string& kind) {
  std::vector<int> members;
  for (int r = 0; r < communicator.size(); ++r) members.push_back(communicator.WorldRank(r));
  const std::lock_guard<std::mutex> lock(mutex_);
  for (const Watched& watched : watched_) {
    if (watched.communicator == &communicator) return;
  }
  watched_.push_back({&communicator, kind, std::move(members)});
}

void Watchdog::ForgetCommunicators() {
  const std::lock_guard<std::mutex> lock(mutex_);
  watched_.clear();
}

void Watchdog::Waiting(const std::string& call, const std::vector<int>& ranks) {
  const std::lock_guard<std::mutex> lock(mutex_);
  waits_in_ = call;
  waits_for_ = ranks;
}

int64_t Watchdog::NumCalls() {
  const std::lock_guard<std::mutex> lock(mutex_);
  int64_t sum = 0;
  for (const Watched& watched : watched_) sum += watched.communicator->recorder().num_calls();
  return sum;
}

// Another rank has died, or the launcher was told to end, and this rank does not get on.
bool Watchdog::MustEnd(double now) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (size_ == 1) return false;
  }
  if (options_.end_requested == nullptr || !options_.end_requested()) return false;
  if (end_requested_at_ < 0) end_requested_at_ = now;
  return std::min(now - end_requested_at_, timer_.IdleSeconds(now)) > kEndSeconds;
}

void Watchdog::Run() {
  while (true) {
    {
      std::unique_lock<std::mutex> lock(mutex_);
      stopped_.wait_for(lock, std::chrono::duration<double>(options_.tick_seconds), [this] { return stop_; });
      if (stop_) return;
    }
    const double now = Now();
    if (const int64_t calls = NumCalls(); calls != num_calls_) {
      num_calls_ = calls;
      timer_.Progress(now);
    }
    const std::optional<HangTimer::Expiry> expiry = timer_.Check(now);
    if (expiry.has_value() && enabled_) {
      Expire(*expiry);
      return;
    }
    if (MustEnd(now)) {
      GiveUp(kExitTerminated,
             absl::StrFormat(
                 "told to end, and nothing has moved for %.2g s: did another rank die? Its own message or "
                 "the launcher's says why",
                 kEndSeconds),
             {});
      return;
    }
    // Signals are looked at here too, so that a second Ctrl-C finds somebody.
    if (options_.end_requested != nullptr) static_cast<void>(options_.end_requested());
  }
}

FlightRecord Watchdog::Compose(const HangTimer::Expiry& expiry) {
  const std::lock_guard<std::mutex> lock(mutex_);
  FlightRecord record{.rank = std::max(rank_, 0),
                      .size = size_,
                      .host = host_,
                      .hosts = hosts_,
                      .section = HangTimer::NameOf(expiry.section),
                      .idle_seconds = expiry.idle_seconds,
                      .limit_seconds = expiry.limit_seconds,
                      .step = ProcessStep(),
                      .waits_in = waits_in_,
                      .waits_for = waits_for_,
                      .groups = {}};
  for (const Watched& watched : watched_) {
    const FlightRecorder& recorder = watched.communicator->recorder();
    record.groups.push_back(RecordGroup(
        recorder, watched.kind.empty() ? recorder.name() : absl::StrCat(recorder.name(), " ", watched.kind),
        watched.members));
  }
  return record;
}

void Watchdog::WriteRecord(const FlightRecord& record, const std::string& stacks,
                           const std::string& directory) {
  if (directory.empty()) return;
  RunBounded(kWriteSeconds, [directory, record, stacks] {
    MakeDirectories(directory);
    WriteWhole(FlightRecordPath(directory, record.rank, "txt"),
               absl::StrCat(Describe(record, FlightRecord::kMaxCalls), stacks));
    WriteWhole(FlightRecordPath(directory, record.rank, "json"), ToJson(record));
  });
}

void Watchdog::Expire(const HangTimer::Expiry& expiry) {
  if (ending_.exchange(true)) return;
  if (options_.exit == nullptr) LightFuse(kExitTransport);
  const FlightRecord record = Compose(expiry);
  const std::string who = absl::StrCat("[rank ", record.rank, "] ");
  bool heard = true;
  PrintBounded(absl::StrCat(who, "watchdog: ", Describe(record, kNumCallsPrinted)), &heard);
  const std::string stacks = StacksOfOtherThreads(kStackSeconds);
  PrintBounded(absl::StrCat(who, "stacks of all threads:\n", stacks), &heard);
  const std::string machine = AskBounded(options_.machine);
  if (!machine.empty()) PrintBounded(absl::StrCat(who, machine), &heard);
  std::string directory;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    directory = directory_;
  }
  WriteRecord(record, absl::StrCat(stacks, machine), directory);
  // What the others left: they notice at about the same time.
  struct Gathered {
    std::mutex mutex;
    std::vector<FlightRecord> records;
  };
  const auto gathered = std::make_shared<Gathered>();
  gathered->records = {record};
  if (!directory.empty() && record.size > 1) {
    const auto until =
        std::chrono::steady_clock::now() + std::chrono::duration<double>(options_.gather_seconds);
    RunBounded(options_.gather_seconds + 1, [gathered, directory, until, record] {
      while (true) {
        absl::StatusOr<std::vector<FlightRecord>> found = ReadFlightRecords(directory);
        if (found.ok()) {
          const std::lock_guard<std::mutex> lock(gathered->mutex);
          const bool has_own = std::any_of(found->begin(), found->end(),
                                           [&](const FlightRecord& r) { return r.rank == record.rank; });
          gathered->records = *std::move(found);
          if (!has_own) gathered->records.push_back(record);
          if (gathered->records.size() == static_cast<size_t>(record.size)) return;
        }
        if (std::chrono::steady_clock::now() > until) return;
        std::this_thread::sleep_for(std::chrono::milliseconds(100));
      }
    });
  }
  std::vector<FlightRecord> records;
  {
    const std::lock_guard<std::mutex> lock(gathered->mutex);
    records = gathered->records;
  }
  const FlightFinding finding = AnalyzeFlightRecords(records);
  const bool speaks = std::all_of(records.begin(), records.end(),
                                  [&](const FlightRecord& r) { return r.rank >= record.rank; });
  if (speaks) {
    PrintBounded(absl::StrCat(finding.text,
                              directory.empty() ? "" : absl::StrCat("the records are in ", directory, "\n")),
                 &heard);
    if (!directory.empty()) {
      RunBounded(kRecordSeconds,
                 [directory, text = finding.text] { WriteWhole(directory + "/report.txt", text); });
    }
  } else if (!directory.empty()) {
    // The end of this process may be that of the one that speaks.
    RunBounded(kReportSeconds, [directory] {
      for (int i = 0; i < 40 && access((directory + "/report.txt").c_str(), F_OK) != 0; ++i) {
        std::this_thread::sleep_for(std::chrono::milliseconds(50));
      }
    });
  }
  const std::string suspect = FirstSuspect(finding.text);
  End(kExitTransport,
      absl::StrFormat("%s%s made no progress for %.1f s (limit %.4g s)%s. If it only takes longer than that: "
                      "raise %s, or watchdog.scale",
                      record.section, record.step >= 0 ? absl::StrCat(", step ", record.step) : "",
                      record.idle_seconds, record.limit_seconds,
                      suspect.empty() ? "" : absl::StrCat("; suspect: ", suspect),
                      HangTimer::FieldOf(expiry.section)),
      finding.suspect_hosts);
}

void Watchdog::GiveUp(int exit_code, const std::string& why, const std::vector<std::string>& suspect_hosts) {
  if (ending_.exchange(true)) return;
  if (options_.exit == nullptr) LightFuse(exit_code);
  std::string who;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    who = rank_ >= 0 && size_ > 1 ? absl::StrCat("[rank ", rank_, "] ") : "";
    if (!waits_for_.empty()) {
      absl::StrAppend(&who, waits_in_, " waits for rank");
      for (const int rank : waits_for_) absl::StrAppend(&who, " ", rank);
      absl::StrAppend(&who, "; ");
    }
  }
  bool heard = true;
  PrintBounded(absl::StrCat(who, why, "\n"), &heard);
  End(exit_code, why, suspect_hosts);
}

void Watchdog::GiveUpWithRecord(int exit_code, const std::string& why,
                                const std::vector<std::string>& suspect_hosts) {
  if (ending_.exchange(true)) return;
  if (options_.exit == nullptr) LightFuse(exit_code);
  const double now = Now();
  const Section section = timer_.section();
  FlightRecord record = Compose({.section = section,
                                 .idle_seconds = timer_.IdleSeconds(now),
                                 .limit_seconds = timer_.LimitOf(section)});
  record.ended_because = why;
  std::string directory;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    directory = directory_;
  }
  const std::string where = directory.empty() ? ""
                                              : absl::StrCat("; what this rank did: ",
                                                             FlightRecordPath(directory, record.rank, "txt"));
  bool heard = true;
  PrintBounded(absl::StrCat("[rank ", record.rank, "] ",
                            record.step >= 0 ? absl::StrCat("[step ", record.step, "] ") : "",
                            "the job ends: ", why, where, "\n"),
               &heard);
  if (!directory.empty()) WriteRecord(record, StacksOfOtherThreads(kStackSeconds), directory);
  End(exit_code, why, suspect_hosts);
}

void Watchdog::End(int exit_code, const std::string& reason, const std::vector<std::string>& suspect_hosts) {
  if (options_.ending != nullptr) {
    RunBounded(kRecordSeconds, [ending = options_.ending, exit_code, reason, suspect_hosts] {
      ending(exit_code, reason, suspect_hosts);
    });
  }
  if (options_.abandon != nullptr) {
    // Whoever forgets the communicators waits for it.
    RunBounded(kAbandonSeconds, [this] {
      const std::lock_guard<std::mutex> lock(mutex_);
      for (const Watched& watched : watched_) options_.abandon(*watched.communicator);
    });
  }
  if (options_.exit != nullptr) {
    options_.exit(exit_code);
  } else {
    _exit(exit_code);
  }
}
}  // namespace carousel

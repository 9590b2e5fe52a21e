#include "launcher/watch/thread_stacks.h"

#include <dirent.h>
#include <execinfo.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstring>
#include <fstream>
#include <vector>

#include "absl/debugging/symbolize.h"
#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_split.h"

namespace carousel {
namespace {
using Clock = std::chrono::steady_clock;
constexpr int kMaxFrames = 64;
constexpr int kMaxThreads = 256;  // more are only counted
constexpr auto kAnswerTime = std::chrono::milliseconds(200);

int StackSignal() { return SIGRTMIN + 6; }

// What one thread answers with. Where it has not answered it is kept: the thread may do so late.
struct Answer {
  void* frames[kMaxFrames];
  int num_frames = 0;
  std::atomic<bool> done = false;
  Answer* next = nullptr;
};
static_assert(std::atomic<bool>::is_always_lock_free);

// Counts what was asked: what the asking thread wrote before is there for the thread that answers.
std::atomic<int64_t> num_asked = 0;
static_assert(std::atomic<int64_t>::is_always_lock_free);

std::atomic<Answer*> late_answers = nullptr;
void Keep(Answer* answer) {
  answer->next = late_answers.load();
  while (!late_answers.compare_exchange_weak(answer->next, answer)) {
  }
}

extern "C" void AnswerWithStack(int, siginfo_t* info, void*) {
  // Not from another process: the pointer is ours.
  if (info->si_code != SI_QUEUE || info->si_pid != getpid() || info->si_value.sival_ptr == nullptr) return;
  if (num_asked.load(std::memory_order_acquire) == 0) return;
  const int error = errno;
  auto* answer = static_cast<Answer*>(info->si_value.sival_ptr);
  answer->num_frames = backtrace(answer->frames, kMaxFrames);
  answer->done.store(true, std::memory_order_release);
  errno = error;
}

std::vector<pid_t> OtherThreads() {
  std::vector<pid_t> threads;
  DIR* const directory = opendir("/proc/self/task");
  if (directory == nullptr) return threads;
  const pid_t self = static_cast<pid_t>(syscall(SYS_gettid));
  while (const dirent* const entry = readdir(directory)) {
    const pid_t thread = static_cast<pid_t>(std::strtol(entry->d_name, nullptr, 10));
    if (thread > 0 && thread != self) threads.push_back(thread);
  }
  closedir(directory);
  std::sort(threads.begin(), threads.end());
  return threads;
}

bool Ask(pid_t thread, Answer* answer) {
  num_asked.fetch_add(1, std::memory_order_release);
  siginfo_t info;
  std::memset(&info, 0, sizeof info);
  info.si_signo = StackSignal();
  info.si_code = SI_QUEUE;
  info.si_pid = getpid();
  info.si_uid = getuid();
  info.si_value.sival_ptr = answer;
  return syscall(SYS_rt_tgsigqueueinfo, getpid(), thread, StackSignal(), &info) == 0;
}

std::string Line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// "(carousel), sleeping in futex_wait_queue".
std::string WhatTheKernelSays(pid_t thread) {
  const std::string folder = absl::StrCat("/proc/self/task/", thread, "/");
  // "4243 (carousel) S ...": the name may hold spaces.
  const std::string stat = Line(folder + "stat");
  const size_t end = stat.rfind(')');
  const char state = end != std::string::npos && end + 2 < stat.size() ? stat[end + 2] : '?';
  const char* what = state == 'R'   ? "running"
                     : state == 'S' ? "sleeping"
                     : state == 'D' ? "waiting for a device"
                     : state == 'T' ? "stopped"
                                    : "in an unknown state";
  const std::string place = Line(folder + "wchan");
  return absl::StrCat("(", Line(folder + "comm"), "), ", what,
                      place.empty() || place == "0" ? "" : absl::StrCat(" in ", place));
}

void AppendFrames(const Answer& answer, std::string* text) {
  // The first two are the handler and the return from a signal.
  for (int i = std::min(2, answer.num_frames); i < answer.num_frames; ++i) {
    char name[512];
    // A return address may lie behind the last instruction of its function.
    const char* const in_call = static_cast<const char*>(answer.frames[i]) - (i > 2 ? 1 : 0);
    const bool known = absl::Symbolize(in_call, name, sizeof name);
    absl::StrAppendFormat(text, "  %p %s\n", answer.frames[i], known ? name : "(unknown)");
  }
}
}  // namespace

void PrepareThreadStacks() {
  void* frames[4];
  backtrace(frames, 4);
  struct sigaction action;
  std::memset(&action, 0, sizeof action);
  action.sa_sigaction = AnswerWithStack;
  sigfillset(&action.sa_mask);
  action.sa_flags = SA_SIGINFO | SA_RESTART;
  sigaction(StackSignal(), &action, nullptr);
}

std::string StacksOfOtherThreads(double seconds) {
  const Clock::time_point end =
      Clock::now() + std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
  const std::vector<pid_t> threads = OtherThreads();
  std::string text;
  size_t num_threads = 0;
  for (const pid_t thread : threads) {
    if (num_threads == kMaxThreads || Clock::now() > end) break;
    ++num_threads;
    const std::string state = WhatTheKernelSays(thread);
    auto* const answer = new Answer;
    if (!Ask(thread, answer)) {  // it has ended
      delete answer;
      continue;
    }
    const Clock::time_point asked = Clock::now();
    while (!answer->done.load(std::memory_order_acquire) && Clock::now() - asked < kAnswerTime) {
      timespec pause = {.tv_sec = 0, .tv_nsec = 200'000};
      nanosleep(&pause, nullptr);
    }
    const bool done = answer->done.load(std::memory_order_acquire);
    absl::StrAppend(&text, "thread ", thread, " ", state, done ? "" : "; it does not answer", "\n");
    if (!done) {
      Keep(answer);
      continue;
    }
    AppendFrames(*answer, &text);
    delete answer;
  }
  if (num_threads < threads.size()) {
    absl::StrAppend(&text, "and ", threads.size() - num_threads, " more threads\n");
  }
  return text;
}
}  // namespace carousel

// TcpNode: connections and the end of the job. How the ranks meet is in tcp_node_meet.cc.
#include "parallel/tcp_node.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>

#include "absl/status/status.h"
#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "parallel/tcp_frames.h"

namespace carousel {
namespace {
using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kTellTime = milliseconds(500);
constexpr auto kReportTime = seconds(1);  // for the thread that communicates to say what it was doing

void Ring(const Socket& event) {
  const uint64_t one = 1;
  static_cast<void>(!write(event.fd(), &one, sizeof one));  // cannot fail: nobody counts to 2^64
}
}  // namespace

TcpNode::~TcpNode() {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    ends_ = true;
  }
  if (!thread_.joinable()) return;
  Ring(wake_);
  thread_.join();
}

// ---- the thread

void TcpNode::Serve() {
  std::vector<pollfd> polled;
  while (true) {
    bool watching = false;
    {
      const std::lock_guard<std::mutex> lock(mutex_);
      if (ends_) return;
      watching = watching_;
    }
    // In this order: wake_, the door, controls_.
    polled.clear();
    polled.push_back({.fd = wake_.fd(), .events = POLLIN, .revents = 0});
    const int wait = door_->AddTo(&polled);
    const size_t num_before = polled.size();
    if (watching) {
      for (const auto& [peer, control] : controls_) {
        polled.push_back({.fd = control.gone ? -1 : control.socket.fd(), .events = POLLIN, .revents = 0});
      }
    }
    poll(polled.data(), polled.size(), wait);
    if (polled[0].revents != 0) {
      uint64_t count = 0;
      static_cast<void>(!read(wake_.fd(), &count, sizeof count));
    }
    if (watching) {
      size_t place = num_before;
      for (auto& [peer, control] : controls_) {
        if (polled[place++].revents != 0) Listen(control, peer);
      }
    }
    door_->Serve(polled.data() + 1, [this](const Introduction& who, Socket socket) {
      const std::lock_guard<std::mutex> lock(mutex_);
      arrived_[{who.group, static_cast<int>(who.from)}] = std::move(socket);
      changed_.notify_all();
    });
    const std::lock_guard<std::mutex> lock(mutex_);
    num_strangers_ = door_->num_strangers();
  }
}

// Whether a rank that knows the secret may come in: empty, or why not. Before all have met, that ends the
// run.
std::string TcpNode::Judge(const Introduction& introduction) {
  const int from = static_cast<int>(introduction.from);
  const std::lock_guard<std::mutex> lock(mutex_);
  std::string why;
  if (introduction.world_size != static_cast<uint32_t>(size())) {
    why = absl::StrCat("rank ", rank(), " was started as one of ", size(), " ranks, rank ", from,
                       " as one of ", introduction.world_size);
  } else if (introduction.to != static_cast<uint32_t>(rank()) || from < 0 || from >= size() ||
             from == rank()) {
    why = absl::StrCat("rank ", from, " called for rank ", introduction.to, " and reached rank ", rank(),
                       "; were two processes started as one rank?");
  } else if (introduction.group == kControlGroup && rank() != 0) {
    why = "only rank 0 takes control connections";
  } else if (!known_.insert({introduction.group, from}).second) {
    why = absl::StrCat("rank ", from, " is there already; were two processes started as that rank?");
  }
  if (refusal_.empty()) refusal_ = why;
  changed_.notify_all();
  return why;
}

// What comes on a control connection once all ranks have met.
void TcpNode::Listen(Control& control, int peer) {
  char bytes[1024];
  const absl::StatusOr<size_t> n = ReceiveSome(control.socket, bytes, sizeof bytes);
  if (!n.ok()) {
    Mark(control, &Control::gone);
    if (control.finished) return;
    Fall({.text = absl::StrCat("rank ", peer, " has gone (", std::string(n.status().message()), ")")}, peer);
    return;
  }
  control.inbox.append(bytes, *n);
  while (!control.gone) {
    const absl::StatusOr<std::optional<Frame>> frame = TakeFrame(&control.inbox, kMaxEndBytes);
    if (frame.ok() && !frame->has_value()) return;
    if (frame.ok() && (*frame)->type == FrameType::kFinished) {
      Mark(control, &Control::finished);
      continue;
    }
    Mark(control, &Control::gone);
    const std::optional<EndFrame> end = frame.ok() ? ParseEnd(**frame) : std::nullopt;
    Fall(end.has_value()
             ? Failure{.text = end->text, .exit_code = end->exit_code}
             : Failure{.text = absl::StrCat("rank ", peer, " sent what is no message of this program")},
         peer);
  }
}

void TcpNode::Mark(Control& control, bool Control::*what) {
  const std::lock_guard<std::mutex> lock(mutex_);
  control.*what = true;
  changed_.notify_all();
}

// The job has failed: `told_by` knows already.
void TcpNode::Fall(const Failure& failure, int told_by) {
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (finished_ || failure_.has_value()) return;
  }
  // Before this process can end: its end would look like the cause.
  if (rank() == 0) TellOthers(failure, told_by);
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    if (!failure_.has_value()) failure_ = failure;
    changed_.notify_all();
  }
  Ring(alarm_);
  EndProcess();
}

// Leaves the last words to the thread that communicates, if it is there to say them.
void TcpNode::EndProcess() {
  std::unique_lock<std::mutex> lock(mutex_);
  const Failure failure = *failure_;
  if (changed_.wait_for(lock, kReportTime, [this] { return reporting_ || ends_; })) {
    changed_.wait_for(lock, kReportTime, [this] { return ends_; });
    if (ends_) return;
  } else {
    std::fprintf(stderr, "[rank %d] %sthe job ends: %s; this rank was not in a collective\n", rank(),
                 ProcessStep() >= 0 ? absl::StrCat("[step ", ProcessStep(), "] ").c_str() : "",
                 failure.text.c_str());
  }
  std::fflush(nullptr);
  std::_Exit(failure.exit_code);
}

void TcpNode::TellOthers(const Failure& failure, int except) {
  const std::string frame = MakeEnd({.exit_code = failure.exit_code, .text = failure.text});
  const std::lock_guard<std::mutex> lock(send_mutex_);
  for (const auto& [peer, control] : controls_) {
    if (peer != except) {
      static_cast<void>(SendAll(control.socket, frame, TcpClock::now() + kTellTime));
    }
  }
}

// ---- other threads

std::optional<TcpNode::Failure> TcpNode::TakeFailure(TcpClock::duration wait) {
  std::unique_lock<std::mutex> lock(mutex_);
  changed_.wait_for(lock, wait, [this] { return failure_.has_value(); });
  if (failure_.has_value()) {
    reporting_ = true;
    changed_.notify_all();
  }
  return failure_;
}

TcpNode::Failure TcpNode::Blame(int peer, const std::string& why) {
  // Who has gone may have done so because of another: the hub knows, and says so as soon as it may run.
  if (const std::optional<Failure> failure = TakeFailure(milliseconds(1000))) return *failure;
  const Failure failure = {.text = absl::StrCat("rank ", peer, " has gone (", why, ")")};
  TellOthers(failure, peer);
  const std::lock_guard<std::mutex> lock(mutex_);
  if (!failure_.has_value()) failure_ = failure;
  reporting_ = true;
  changed_.notify_all();
  return *failure_;
}

void TcpNode::EndJob(int exit_code) {
  bool tell = false;
  {
    const std::lock_guard<std::mutex> lock(mutex_);
    tell = !failure_.has_value();
    reporting_ = true;
    if (tell) {
      failure_ = Failure{.text = absl::StrCat("rank ", rank(), " ended the job with exit code ", exit_code),
                         .exit_code = exit_code};
    }
    changed_.notify_all();
  }
  if (tell) TellOthers(*failure_, -1);
  std::fflush(nullptr);
  std::_Exit(exit_code);
}

bool TcpNode::FinishTogether(TcpClock::duration limit) {
  const auto tell = [this] {
    const std::lock_guard<std::mutex> lock(send_mutex_);
    for (const auto& [peer, control] : controls_) {
      static_cast<void>(
          SendAll(control.socket, MakeFrame(FrameType::kFinished, ""), TcpClock::now() + kTellTime));
    }
  };
  if (rank() != 0) tell();
  {
    std::unique_lock<std::mutex> lock(mutex_);
    const auto finished = [this] {
      return std::all_of(controls_.begin(), controls_.end(),
                         [](const auto& entry) { return entry.second.finished; });
    };
    if (limit == TcpClock::duration::max()) {
      changed_.wait(lock, finished);
    } else if (!changed_.wait_for(lock, limit, finished)) {
      return false;
    }
    finished_ = true;
  }
  if (rank() == 0) tell();
  return true;
}
}  // namespace carousel

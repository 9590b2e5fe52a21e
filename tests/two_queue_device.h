// A device on the host with a compute stream and a side stream whose work waits in two queues until somebody
// waits for the device, and then runs in the most unequal order that the events allow: one queue only moves
// when the other cannot. A wait that is missing shows as a wrong number, a needless one as work done late.
#pragma once
#include <cstdlib>
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "core/comm/communicator.h"
#include "core/device.h"
#include "launcher/plan/forwarding_ops.h"

namespace carousel::testing {

class TwoQueueDevice final : public Device {
 public:
  enum class First { kCompute, kSide };
  // device: a host-accessible one, whose Fill, Cast and Add are used.
  TwoQueueDevice(std::unique_ptr<Device> device, First first)
      : device_(std::move(device)), first_(first), compute_(*this), side_(*this) {}

  // The queues' entries.
  class Queue final : public Stream {
   public:
    explicit Queue(TwoQueueDevice& device) : Stream(device.device_->ops()), device_(device), ops_(*this) {}
    Ops& ops() override { return ops_; }
    void Put(std::function<void()> run) { entries_.push_back({.run = std::move(run)}); }
    void Record(Event& event) override {
      QueueEvent* e = static_cast<QueueEvent*>(&event);
      Put([e, number = ++e->recorded] { e->reached = number; });
    }
    void Wait(const Event& event) override {
      const QueueEvent* e = static_cast<const QueueEvent*>(&event);
      entries_.push_back({.run = [] {}, .event = e, .number = e->recorded});
    }
    // Runs the first entry; false if there is none or it has to wait.
    bool Step() {
      if (entries_.empty()) return false;
      const Entry& entry = entries_.front();
      if (entry.event != nullptr && entry.event->reached < entry.number) return false;
      const std::function<void()> run = entry.run;
      entries_.pop_front();
      run();
      return true;
    }
    bool empty() const { return entries_.empty(); }
    TwoQueueDevice& device() { return device_; }

   private:
    class LaterOps final : public ForwardingOps {
     public:
      explicit LaterOps(Queue& queue) : ForwardingOps(queue.device_.device_->ops()), queue_(queue) {}
      void Fill(const FillArgs& a) override {
        queue_.Put([this, a] { ops_.Fill(a); });
      }
      void Cast(const CastArgs& a) override {
        queue_.Put([this, a] { ops_.Cast(a); });
      }
      void Add(const AddArgs& a) override {
        queue_.Put([this, a] { ops_.Add(a); });
      }

     private:
      Queue& queue_;
    };
    struct QueueEvent final : Event {
      int64_t recorded = 0, reached = 0;
    };
    friend class TwoQueueDevice;
    struct Entry {
      std::function<void()> run;
      const QueueEvent* event = nullptr;
      int64_t number = 0;
    };
    TwoQueueDevice& device_;
    LaterOps ops_;
    std::deque<Entry> entries_;
  };

  std::string name() const override { return "two queues"; }
  bool host_accessible() const override { return true; }
  void* Allocate(int64_t bytes) override { return device_->Allocate(bytes); }
  void Free(void* memory) override { device_->Free(memory); }
  void CopyToDevice(void* destination, const void* source, int64_t bytes) override {
    Synchronize();
    device_->CopyToDevice(destination, source, bytes);
  }
  void CopyToHost(void* destination, const void* source, int64_t bytes) override {
    Synchronize();
    device_->CopyToHost(destination, source, bytes);
  }
  void Synchronize() override {
    Queue &first = first_ == First::kCompute ? compute_ : side_,
          &second = first_ == First::kCompute ? side_ : compute_;
    while (first.Step() || second.Step()) {
    }
    CAROUSEL_CHECK_MSG(first.empty() && second.empty(), "the queues wait for each other");
  }
  Ops& ops() override { return compute_.ops(); }
  std::unique_ptr<Stream> ComputeStream() override { return std::make_unique<Handle>(compute_); }
  std::unique_ptr<Event> MakeEvent() override { return std::make_unique<Queue::QueueEvent>(); }

  Queue& compute() { return compute_; }
  Queue& side() { return side_; }
  std::vector<std::string> log;  // what ran, by those who write to it

 private:
  class Handle final : public Stream {
   public:
    explicit Handle(Queue& queue) : Stream(queue.ops()), queue_(queue) {}
    void Record(Event& event) override { queue_.Record(event); }
    void Wait(const Event& event) override { queue_.Wait(event); }

   private:
    Queue& queue_;
  };

  std::unique_ptr<Device> device_;
  First first_;
  Queue compute_, side_;
};

// Another communicator's collectives, called when a queue comes to them.
class QueuedCommunicator final : public Communicator {
 public:
  QueuedCommunicator(Communicator& real, TwoQueueDevice::Queue& queue) : real_(real), queue_(queue) {}
  int rank() const override { return real_.rank(); }
  int size() const override { return real_.size(); }
  [[noreturn]] void Abort(int exit_code) override {
    real_.Abort(exit_code);
    std::abort();  // not reached
  }

 protected:
  void DoAllReduceSum(Tensor x) override {
    Put("AllReduceSum", x, [this, x] { real_.AllReduceSum(x); });
  }
  void DoAllGather(Tensor all, Tensor mine) override {
    Put("AllGather", all, [this, all, mine] { real_.AllGather(all, mine); });
  }
  void DoReduceScatterSum(Tensor mine, Tensor all) override {
    Put("ReduceScatterSum", all, [this, mine, all] { real_.ReduceScatterSum(mine, all); });
  }
  void DoAllToAll(Tensor out, Tensor in) override {
    Put("AllToAll", in, [this, out, in] { real_.AllToAll(out, in); });
  }
  void DoBroadcast(Tensor x, int root) override {
    Put("Broadcast", x, [this, x, root] { real_.Broadcast(x, root); });
  }
  void DoSend(Tensor x, int to) override {
    Put("Send", x, [this, x, to] { real_.Send(x, to); });
  }
  void DoRecv(Tensor x, int from) override {
    Put("Recv", x, [this, x, from] { real_.Recv(x, from); });
  }
  void DoBarrier() override {
    queue_.Put([this] { real_.Barrier(); });
  }

 private:
  // Logs "AllGather 4096": how many elements the larger tensor has.
  void Put(const char* name, Tensor x, std::function<void()> call) {
    queue_.Put([this, text = name + (" " + std::to_string(x.num_elems())), call = std::move(call)] {
      queue_.device().log.push_back(text);
      call();
    });
  }
  Communicator& real_;
  TwoQueueDevice::Queue& queue_;
};
}  // namespace carousel::testing

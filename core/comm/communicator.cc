#include "core/comm/communicator.h"

#include <algorithm>
#include <cstdio>
#include <cstring>

#include "core/base/check.h"
#include "core/base/exit_code.h"
#include "core/comm/comm_time.h"

namespace carousel {

// Notes a call from its first check to its return.
class Communicator::Scope {
 public:
  Scope(Communicator& communicator, const CollectiveCall& call, const CallSite& site)
      : communicator_(communicator) {
    communicator_.call_ = call;
    communicator_.site_ = site;
    communicator_.recorder_.Begin(call, site);
    const bool pair = call.op == CollectiveOp::kSend || call.op == CollectiveOp::kRecv ||
                      call.op == CollectiveOp::kSendRecv;
    if (communicator_.verify_calls_ && !pair) communicator_.Verify();
  }
  ~Scope() { communicator_.recorder_.End(); }
  Scope(const Scope&) = delete;
  Scope& operator=(const Scope&) = delete;

 private:
  const CollectiveTimer timer_;
  Communicator& communicator_;
};

std::string Communicator::DescribeCurrent() const {
  return (ProcessStep() >= 0 ? "[step " + std::to_string(ProcessStep()) + "] " : std::string()) +
         DescribeAt(call_, recorder_.name(), site_);
}

// Every rank sends its call and where it was made; fixed size, so that even a split may be compared.
void Communicator::Verify() {
  if (size() == 1) return;
  struct Message {
    int64_t op, dtype, num_elems, peer;
    char text[192];
  };
  Message mine = {.op = static_cast<int64_t>(call_.op),
                  .dtype = static_cast<int64_t>(call_.dtype),
                  .num_elems = call_.num_elems,
                  .peer = call_.peer,
                  .text = {}};
  const std::string text = Describe(call_) + " at " + site_.ToString();
  std::memcpy(mine.text, text.data(), std::min(text.size(), sizeof mine.text - 1));
  std::vector<Message> all(static_cast<size_t>(size()));
  DoExchangeForVerify(all.data(), &mine, sizeof mine);
  for (int r = 0; r < size(); ++r) {
    Message& theirs = all[static_cast<size_t>(r)];
    theirs.text[sizeof theirs.text - 1] = 0;
    if (theirs.op == mine.op && theirs.dtype == mine.dtype && theirs.num_elems == mine.num_elems &&
        theirs.peer == mine.peer) {
      continue;
    }
    std::fprintf(stderr, "[rank %d] the ranks' calls do not match: %s, but rank %d called %s instead\n",
                 WorldRank(rank()), DescribeCurrent().c_str(), WorldRank(r), theirs.text);
    std::fflush(nullptr);
    Abort(kExitFailure);
  }
}

void Communicator::DoSendRecv(Tensor, int, Tensor, int) {
  CheckFailed(__FILE__, __LINE__, "this communicator has no SendRecv");
}
std::unique_ptr<Communicator> Communicator::DoSplit(int) {
  CheckFailed(__FILE__, __LINE__, "this communicator cannot be split");
}
void Communicator::DoExchangeForVerify(void*, const void*, int64_t) {
  CheckFailed(__FILE__, __LINE__, "this communicator cannot verify calls");
}

void Communicator::AllReduceSum(Tensor x, CallSite site) {
  const Scope scope(*this, CheckAllReduceSum(x), site);
  DoAllReduceSum(x);
}

void Communicator::AllGather(Tensor all, Tensor mine, CallSite site) {
  const Scope scope(*this, CheckAllGather(all, mine, rank(), size()), site);
  DoAllGather(all, mine);
}

void Communicator::ReduceScatterSum(Tensor mine, Tensor all, CallSite site) {
  const Scope scope(*this, CheckReduceScatterSum(mine, all, rank(), size()), site);
  DoReduceScatterSum(mine, all);
}

void Communicator::AllToAll(Tensor out, Tensor in, CallSite site) {
  const Scope scope(*this, CheckAllToAll(out, in, size()), site);
  DoAllToAll(out, in);
}

void Communicator::Broadcast(Tensor x, int root, CallSite site) {
  const Scope scope(*this, CheckBroadcast(x, root, size()), site);
  DoBroadcast(x, root);
}

void Communicator::Send(Tensor x, int destination, CallSite site) {
  const Scope scope(*this, CheckSend(x, destination, rank(), size()), site);
  DoSend(x, destination);
}

void Communicator::Recv(Tensor x, int source, CallSite site) {
  const Scope scope(*this, CheckRecv(x, source, rank(), size()), site);
  DoRecv(x, source);
}

void Communicator::SendRecv(Tensor out, int destination, Tensor in, int source, CallSite site) {
  if (!in.defined()) {
    if (out.defined()) Send(out, destination, site);
    return;
  }
  if (!out.defined()) return Recv(in, source, site);
  const Scope scope(*this, CheckSendRecv(out, destination, in, source, rank(), size()), site);
  DoSendRecv(out, destination, in, source);
}

void Communicator::Barrier(CallSite site) {
  const Scope scope(*this, {.op = CollectiveOp::kBarrier}, site);
  DoBarrier();
}

std::unique_ptr<Communicator> Communicator::Split(int color, CallSite site) {
  const Scope scope(*this, {.op = CollectiveOp::kSplit}, site);
  std::unique_ptr<Communicator> part = DoSplit(color);
  if (part != nullptr) part->set_verify_calls(verify_calls_);
  return part;
}

std::vector<std::string> AllGatherBytes(Communicator& communicator, const std::string& mine, CallSite site) {
  const int size = communicator.size();
  int64_t length = static_cast<int64_t>(mine.size());
  std::vector<int64_t> lengths(static_cast<size_t>(size));
  communicator.AllGather(Tensor(lengths.data(), DType::kI64, {size}), Tensor(&length, DType::kI64, {1}),
                         site);
  const int64_t longest = std::max<int64_t>(1, *std::max_element(lengths.begin(), lengths.end()));
  std::string padded = mine;
  padded.resize(static_cast<size_t>(longest), '\0');
  std::string all(static_cast<size_t>(longest * size), '\0');
  communicator.AllGather(Tensor(all.data(), DType::kU8, {longest * size}),
                         Tensor(padded.data(), DType::kU8, {longest}), site);
  std::vector<std::string> result;
  for (int r = 0; r < size; ++r) {
    result.push_back(
        all.substr(static_cast<size_t>(longest * r), static_cast<size_t>(lengths[static_cast<size_t>(r)])));
  }
  return result;
}

std::string BroadcastBytes(Communicator& communicator, const std::string& bytes, int root, CallSite site) {
  int64_t length = static_cast<int64_t>(bytes.size());
  communicator.Broadcast(Tensor(&length, DType::kI64, {1}), root, site);
  std::string result = communicator.rank() == root ? bytes : std::string(static_cast<size_t>(length), '\0');
  if (length > 0) communicator.Broadcast(Tensor(result.data(), DType::kU8, {length}), root, site);
  return result;
}

void SumOverRanks(Communicator& communicator, std::vector<uint64_t>* values, CallSite site) {
  if (communicator.size() == 1 || values->empty()) return;
  // In halves, because a signed sum must not overflow.
  std::vector<int64_t> halves;
  halves.reserve(2 * values->size());
  for (const uint64_t v : *values) {
    halves.push_back(static_cast<int64_t>(v & 0xffffffffu));
    halves.push_back(static_cast<int64_t>(v >> 32));
  }
  communicator.AllReduceSum(Tensor(halves.data(), DType::kI64, {static_cast<int64_t>(halves.size())}), site);
  for (size_t i = 0; i < values->size(); ++i) {
    (*values)[i] = static_cast<uint64_t>(halves[2 * i]) + (static_cast<uint64_t>(halves[2 * i + 1]) << 32);
  }
}

uint64_t SumOverRanks(Communicator& communicator, uint64_t mine, CallSite site) {
  std::vector<uint64_t> values = {mine};
  SumOverRanks(communicator, &values, site);
  return values[0];
}
}  // namespace carousel

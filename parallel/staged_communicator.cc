#include "parallel/staged_communicator.h"

#include <cstdlib>

namespace carousel {

Tensor StagedCommunicator::Place(std::vector<std::byte>* buffer, Tensor x) {
  CAROUSEL_CHECK(x.contiguous());
  const size_t bytes = static_cast<size_t>(x.num_bytes());
  if (buffer->size() < bytes) buffer->resize(bytes);
  return Tensor(buffer->data(), x.dtype, {x.num_elems()});
}

Tensor StagedCommunicator::Fetch(std::vector<std::byte>* buffer, Tensor x) {
  const Tensor host = Place(buffer, x);
  device_.CopyToHost(host.data, x.data, x.num_bytes());
  return host;
}

void StagedCommunicator::Put(Tensor x, Tensor from) {
  device_.CopyToDevice(x.data, from.data, x.num_bytes());
}

void StagedCommunicator::DoAllReduceSum(Tensor x) {
  const Tensor host = Fetch(&in_, x);
  host_.AllReduceSum(host);
  Put(x, host);
}

void StagedCommunicator::DoAllGather(Tensor all, Tensor mine) {
  const Tensor from = Fetch(&in_, mine), to = Place(&out_, all);
  host_.AllGather(to, from);
  Put(all, to);
}

void StagedCommunicator::DoReduceScatterSum(Tensor mine, Tensor all) {
  const Tensor from = Fetch(&in_, all), to = Place(&out_, mine);
  host_.ReduceScatterSum(to, from);
  Put(mine, to);
}

void StagedCommunicator::DoAllToAll(Tensor out, Tensor in) {
  const Tensor from = Fetch(&in_, in), to = Place(&out_, out);
  host_.AllToAll(to, from);
  Put(out, to);
}

void StagedCommunicator::DoBroadcast(Tensor x, int root) {
  const Tensor host = rank() == root ? Fetch(&in_, x) : Place(&in_, x);
  host_.Broadcast(host, root);
  if (rank() != root) Put(x, host);
}

void StagedCommunicator::DoSend(Tensor x, int destination) { host_.Send(Fetch(&in_, x), destination); }

void StagedCommunicator::DoRecv(Tensor x, int source) {
  const Tensor host = Place(&in_, x);
  host_.Recv(host, source);
  Put(x, host);
}

void StagedCommunicator::Abort(int exit_code) {
  host_.Abort(exit_code);
  std::abort();  // not reached
}
}  // namespace carousel

#include "parallel/staged_communicator.h"

#include <cstdlib>
#include <utility>

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
  host_.AllReduceSum(host, site());
  Put(x, host);
}

void StagedCommunicator::DoAllGather(Tensor all, Tensor mine) {
  const Tensor from = Fetch(&in_, mine), to = Place(&out_, all);
  host_.AllGather(to, from, site());
  Put(all, to);
}

void StagedCommunicator::DoReduceScatterSum(Tensor mine, Tensor all) {
  const Tensor from = Fetch(&in_, all), to = Place(&out_, mine);
  host_.ReduceScatterSum(to, from, site());
  Put(mine, to);
}

void StagedCommunicator::DoAllToAll(Tensor out, Tensor in) {
  const Tensor from = Fetch(&in_, in), to = Place(&out_, out);
  host_.AllToAll(to, from, site());
  Put(out, to);
}

void StagedCommunicator::DoBroadcast(Tensor x, int root) {
  const Tensor host = rank() == root ? Fetch(&in_, x) : Place(&in_, x);
  host_.Broadcast(host, root, site());
  if (rank() != root) Put(x, host);
}

void StagedCommunicator::DoSend(Tensor x, int destination) {
  host_.Send(Fetch(&in_, x), destination, site());
}

void StagedCommunicator::DoRecv(Tensor x, int source) {
  const Tensor host = Place(&in_, x);
  host_.Recv(host, source, site());
  Put(x, host);
}

void StagedCommunicator::DoSendRecv(Tensor out, int destination, Tensor in, int source) {
  const Tensor from = Fetch(&in_, out), to = Place(&out_, in);
  host_.SendRecv(from, destination, to, source, site());
  Put(in, to);
}

std::unique_ptr<Communicator> StagedCommunicator::DoSplit(int color) {
  std::unique_ptr<Communicator> host = host_.Split(color, site());
  if (host == nullptr) return nullptr;
  return std::make_unique<StagedCommunicator>(std::move(host), device_);
}

void StagedCommunicator::DoExchangeForVerify(void* all, const void* mine, int64_t bytes) {
  host_.AllGather(Tensor(all, DType::kU8, {bytes * size()}),
                  Tensor(const_cast<void*>(mine), DType::kU8, {bytes}), site());
}

void StagedCommunicator::set_name(const std::string& name) {
  Communicator::set_name(name);
  if (own_host_ != nullptr) own_host_->set_name(name);
}

void StagedCommunicator::Abort(int exit_code) {
  host_.Abort(exit_code);
  std::abort();  // not reached
}
}  // namespace carousel

// DryDevice: a device with any amount of memory on which every op takes no time and does nothing. The code
// that trains runs on it unchanged, for any number of ranks and any size, and what it would have sent is
// counted. Nothing that it "holds" may be read or written by the host.
#pragma once
#include <memory>
#include <string>

#include "core/device.h"

namespace carousel {

class DryDevice final : public Device {
 public:
  // Workspaces are as large as those of `like`, which must outlive this.
  explicit DryDevice(Device& like);
  ~DryDevice() override;

  std::string name() const override { return like_.name(); }
  bool host_accessible() const override { return false; }
  // An address that nothing lies at; never null.
  void* Allocate(int64_t bytes) override;
  void Free(void*) override {}
  void CopyToDevice(void*, const void*, int64_t) override {}
  void CopyToHost(void* host_destination, const void* device_source, int64_t bytes) override;  // zeros
  void Synchronize() override {}
  Ops& ops() override;
  int64_t num_ops() const;  // issued until now

 private:
  class DryOps;
  Device& like_;
  std::unique_ptr<DryOps> ops_;
};
}  // namespace carousel

// A clock and machines for the tests of leases.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <utility>

#include "checkpoints/run_lease.h"
#include "tests/forwarding_file_system.h"

namespace carousel {

// Stands still but for Sleep, which may do something first.
class TestClock final : public LeaseClock {
 public:
  explicit TestClock(double skew_seconds = 0) : skew_(skew_seconds) {}
  int64_t UnixNanos() override {
    return 1'767'323'045'000'000'000 + static_cast<int64_t>(1e9 * (now_ + skew_));
  }
  double Seconds() override { return now_; }
  void Sleep(double seconds) override {
    now_ += seconds;
    if (on_sleep) on_sleep();
  }
  std::function<void()> on_sleep;

 private:
  const double skew_;
  double now_ = 0;
};

// The disk as a machine sees it whose locks other machines do not see.
class OtherMachine final : public ForwardingFileSystem {
 public:
  explicit OtherMachine(FileSystem& files, bool has_locks = true)
      : ForwardingFileSystem(files), has_locks_(has_locks) {}
  absl::Status LinkFile(const std::string& from, const std::string& to) override {
    return has_locks_ ? files_.LinkFile(from, to) : absl::UnimplementedError("no links");
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string&, const std::string&) override {
    if (!has_locks_) return absl::UnimplementedError("no locks");
    if (locked_) return absl::FailedPreconditionError("somebody");
    locked_ = true;
    return std::unique_ptr<FileLock>(std::make_unique<Held>(&locked_, domain_));
  }
  void set_domain(const std::string& domain) { domain_ = domain; }
  void Kill() { locked_ = false; }  // the process is dead, its locks with it

 private:
  class Held final : public FileLock {
   public:
    Held(bool* locked, std::string domain) : locked_(locked), domain_(std::move(domain)) {}
    ~Held() override { *locked_ = false; }
    std::string domain() const override { return domain_; }

   private:
    bool* locked_;
    const std::string domain_;
  };
  const bool has_locks_;
  bool locked_ = false;
  std::string domain_ = "8:1";
};
}  // namespace carousel

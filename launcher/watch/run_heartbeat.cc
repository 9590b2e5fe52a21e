#include "launcher/watch/run_heartbeat.h"

#include <chrono>
#include <cstdio>
#include <thread>

#include "absl/strings/str_cat.h"
#include "core/base/check.h"
#include "core/base/exit_code.h"
#include "core/base/log.h"

namespace carousel {
namespace {
// The network that the user gave to Open MPI, which hands its parameters to the ranks.
std::string NetworkOfMpi() {
  for (const char* name : {"OMPI_MCA_oob_tcp_if_include", "OMPI_MCA_btl_tcp_if_include"}) {
    const std::string value = Environment::Variable(name);
    if (!value.empty()) return value;
  }
  return "";
}

std::string Place() { return ProcessStep() >= 0 ? absl::StrCat("[step ", ProcessStep(), "] ") : ""; }
}  // namespace

std::unique_ptr<Heartbeat> StartHeartbeat(const RunSpec& run, Environment& environment, const RunEnder& end) {
  if (run.heartbeat.limit_seconds <= 0 || environment.size() == 1) return nullptr;
  const int rank = environment.rank();
  HeartbeatOptions options;
  options.limit_seconds = run.heartbeat.limit_seconds;
  options.interface = run.heartbeat.interface.empty() ? NetworkOfMpi() : run.heartbeat.interface;
  options.run_secret = Environment::Variable("CAROUSEL_RUN_SECRET");
  options.on_death = [rank](const HeartbeatLoss& loss) {
    std::fprintf(stderr, "[rank %d] %s%s\n", rank, Place().c_str(), loss.text.c_str());
  };
  options.on_loss = [end](const HeartbeatLoss& loss) {
    end(kExitTransport, loss.text, loss.suspect_hosts);
    // Whoever was quicker ends the process, with a fuse should even that not work.
    while (true) std::this_thread::sleep_for(std::chrono::seconds(1));
  };
  absl::StatusOr<std::unique_ptr<Heartbeat>> heartbeat =
      Heartbeat::Start(environment.world(), environment.local(), environment.host(), options);
  if (!heartbeat.ok()) {
    if (rank == 0) {
      CAROUSEL_LOG(WARNING) << "no heartbeats between the ranks: " << heartbeat.status().message()
                            << ". A node that hangs will be noticed later. watchdog.heartbeat_interface "
                               "chooses the network, watchdog.heartbeat_seconds=0 does without";
    }
    return nullptr;
  }
  if (rank == 0 && *heartbeat != nullptr) CAROUSEL_LOG(INFO) << (*heartbeat)->description();
  return *std::move(heartbeat);
}
}  // namespace carousel

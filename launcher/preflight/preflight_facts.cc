#include "launcher/preflight/preflight_facts.h"

#include <exception>
#include <nlohmann/json.hpp>

#include "absl/strings/str_cat.h"

namespace carousel {

using nlohmann::json;

// A member that is missing keeps its default: the text may come from another build.
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(GpuFacts, index, name, uuid, bus_id, error,
                                                memory_total_bytes, memory_used_bytes, ecc_enabled,
                                                ecc_corrected, ecc_uncorrected, ecc_uncorrected_ever,
                                                rows_remapped, remap_pending, remap_failed, throttle_reasons,
                                                sm_mhz, max_sm_mhz, temperature_c, power_mw, power_limit_mw,
                                                default_power_limit_mw, pcie_width, max_pcie_width,
                                                persistence, num_processes, xids)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(GpusOfMachine, asked, missing, driver, cuda_driver, gpus)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(DeviceFacts, name, kind, uuid, error, memory_total_bytes,
                                                memory_free_bytes, threads, dtype, size, flops, repeats,
                                                different, digest)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(ReduceFacts, axis, kind, members, num_wrong, first_wrong,
                                                expected, got, bytes, seconds)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(PairFacts, peer, bytes, seconds, num_wrong)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(StorageFacts, asked, directory, file_system, error,
                                                lock_error, free_bytes, total_bytes, existing_bytes,
                                                write_bytes, write_seconds, write_error)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(TokenFileFacts, path, bytes, digest, error)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(NetworkInterface, name, up, addresses)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(MachineFacts, kernel, cpu, simd, cores, machine_cores,
                                                memory_bytes, memory_available_bytes, cgroup_limit_bytes,
                                                cgroup_used_bytes, open_files, locked_bytes, file_bytes,
                                                address_bytes, core_bytes, processes, core_pattern,
                                                shm_total_bytes, shm_free_bytes, interfaces, infiniband, root)
NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE_WITH_DEFAULT(RankFacts, rank, world, host, local_rank, local_size, build,
                                                launcher, libraries, variables, default_threads, machine,
                                                gpus, device, sums, pairs, clock_asked, clock_offset_seconds,
                                                clock_uncertainty_seconds, storage, tokens)

std::string ToText(const RankFacts& facts) {
  // Texts of the system may hold any bytes.
  return json(facts).dump(-1, ' ', /*ensure_ascii=*/true, json::error_handler_t::replace);
}

absl::StatusOr<RankFacts> ParseRankFacts(const std::string& text) {
  const json object = json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!object.is_object()) return absl::DataLossError("a rank's facts are no JSON object");
  // The library reports a member of another type by an exception.
  try {
    return object.get<RankFacts>();
  } catch (const std::exception& error) {
    return absl::DataLossError(absl::StrCat("a rank's facts cannot be read: ", error.what()));
  }
}
}  // namespace carousel

// Synchronisations by their place in the source: listing them, and removing one (tests of planted bugs).
#include <cstring>
#include <mutex>
#include <utility>

#include "kernels/simt/emulator_internal.h"

namespace carousel::emulator {
namespace {
std::mutex sites_mutex;
bool recording = false;
std::vector<Site> recorded;
bool removing = false;
Site removed_site;

bool Matches(const Site& s, const char* kernel, const char* kind, const Loc& loc) {
  return s.line == loc.line && s.kernel == kernel && s.kind == kind && s.file == loc.file;
}
}  // namespace

std::atomic<bool> sites_active{false};

bool SiteIsRemoved(const char* kind, const Loc& loc) {
  std::lock_guard lock(sites_mutex);
  const char* kernel = worker->config->name;
  if (recording) {
    bool known = false;
    for (const Site& s : recorded) known = known || Matches(s, kernel, kind, loc);
    if (!known) recorded.push_back({kernel, loc.file, loc.line, kind});
  }
  return removing && Matches(removed_site, kernel, kind, loc);
}

void RecordSites() {
  std::lock_guard lock(sites_mutex);
  recorded.clear();
  recording = true;
  sites_active = true;
}
std::vector<Site> ListSites() {
  std::lock_guard lock(sites_mutex);
  recording = false;
  sites_active = removing;
  return std::exchange(recorded, {});
}
void RemoveSite(const Site& site) {
  std::lock_guard lock(sites_mutex);
  removed_site = site;
  removing = true;
  sites_active = true;
}
void RestoreSites() {
  std::lock_guard lock(sites_mutex);
  removing = false;
  sites_active = recording;
}
}  // namespace carousel::emulator

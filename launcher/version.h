// What this program was built from. Baked in at every build (scripts/write_version.cmake), also without git.
#pragma once
#include <string>

namespace carousel {

const char* Version();      // "0.1.0"
const char* GitRevision();  // "0123456789ab", with "-dirty" if the tree had changes; "unknown" without git
std::string VersionLine();  // "carousel 0.1.0, revision 0123456789ab, g++ 12.2.0, Release"
}  // namespace carousel

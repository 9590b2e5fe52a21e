// Trials of the disk before a run: can its directory be used by all ranks, how fast is it, do locks work; and
// what tells token files apart.
#pragma once
#include <cstdint>
#include <string>

#include "checkpoints/file_system.h"
#include "core/comm/communicator.h"
#include "launcher/preflight/preflight_facts.h"

namespace carousel {

struct StorageTrial {
  std::string run_dir;
  bool probe = true;              // this rank looks whether it sees what rank 0 wrote, and writes itself
  bool measure = true;            // this rank times a write
  int64_t write_bytes = 4 << 20;  // of it; less where it would be more than an eighth of what is free
};
// Collective over `world`. Everything that is created, missing directories included, is gone again on return.
// files: null: the real one.
StorageFacts TryStorage(const StorageTrial& trial, Communicator& world, FileSystem* files = nullptr);

// A file's size and the digest of its size, its first 64 KiB and 64 blocks of 4 KiB spread over it: equal if
// the files are, without reading all of a large one.
TokenFileFacts DigestFile(const std::string& path, FileSystem* files = nullptr);

// "ext4", "nfs", "tmpfs", ...: what the system calls the file system of a path; its number where that has no
// name here; empty if the path cannot be asked.
std::string FileSystemName(const std::string& path);
}  // namespace carousel

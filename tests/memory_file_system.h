// A FileSystem in memory that can fail at any call and lose, at a crash, what was not synced.
//
// Model of a crash: a file keeps what Sync made durable and perhaps more of what was appended after it; a
// directory keeps the changes that SyncDirectory made durable and perhaps more of the following ones, in
// their order (a journaling file system).
#pragma once
#include <algorithm>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "absl/strings/str_cat.h"
#include "checkpoints/file_system.h"
#include "core/base/check.h"

namespace carousel {

class MemoryFileSystem final : public FileSystem {
 public:
  // Asked before every call, with its number from 0 on, its name and its path. An error is returned by the
  // call, which then has no effect (an Append writes half of its bytes first).
  using Fault = std::function<absl::Status(int64_t index, const std::string& call, const std::string& path)>;
  enum class Crash { kLoseAll, kKeepAll, kRandom };

  MemoryFileSystem() : root_(std::make_shared<Node>()) { root_->directory = true; }

  void SetFault(Fault fault) {
    const std::lock_guard<std::mutex> lock(mutex_);
    fault_ = std::move(fault);
    calls_ = 0;
  }
  int64_t num_calls() const { return calls_; }
  void SetFreeBytes(int64_t bytes) { free_bytes_ = bytes; }

  // The machine stops: what is not durable is lost, kept or partly kept. Locks are gone.
  void CrashNow(Crash crash, uint64_t seed) {
    fault_ = nullptr;
    lock_owner_.clear();
    std::mt19937_64 random(seed);
    Recover(*root_, crash, random);
  }
  // A file's contents, to damage them.
  std::string* Contents(const std::string& path) {
    const std::shared_ptr<Node> node = Find(path);
    return node == nullptr || node->directory ? nullptr : &node->data;
  }
  // The disk keeps something else of the file than was written; it is read once its cached contents are
  // dropped.
  void DamageStored(const std::string& path, const std::string& stored) { Find(path)->stored = stored; }
  // Another part of the program writes to the end of a file, which it keeps open and does not sync.
  void AppendTo(const std::string& path, const std::string& text) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [parent, name] = Parent(path);
    CAROUSEL_CHECK(parent != nullptr);
    if (parent->entries.count(name) == 0) Link(*parent, name, std::make_shared<Node>());
    parent->entries[name]->data += text;
  }
  // Another machine puts another file in its place. Also while other threads read the file.
  void Replace(const std::string& path, const std::string& contents) {
    const std::lock_guard<std::mutex> lock(mutex_);
    const auto [parent, name] = Parent(path);
    CAROUSEL_CHECK(parent != nullptr);
    const auto node = std::make_shared<Node>();
    node->data = contents;
    parent->entries[name] = node;
  }
  // All paths of files, sorted.
  std::vector<std::string> AllFiles() const {
    std::vector<std::string> paths;
    Collect(*root_, "", &paths);
    return paths;
  }

  absl::StatusOr<std::unique_ptr<WritableFile>> CreateFile(const std::string& path) override {
    const Guard guard(this, "create", path);
    if (!guard.status().ok()) return guard.status();
    const auto [parent, name] = Parent(path);
    if (parent == nullptr) return absl::NotFoundError(absl::StrCat("creating ", path));
    if (parent->entries.count(name) != 0) return absl::AlreadyExistsError(absl::StrCat("creating ", path));
    const auto node = std::make_shared<Node>();
    Link(*parent, name, node);
    return std::unique_ptr<WritableFile>(std::make_unique<Writer>(this, path, node));
  }
  absl::StatusOr<std::unique_ptr<ReadableFile>> OpenFile(const std::string& path) override {
    const Guard guard(this, "open", path);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr) return absl::NotFoundError(absl::StrCat("opening ", path));
    return std::unique_ptr<ReadableFile>(std::make_unique<Reader>(this, path, node));
  }
  absl::StatusOr<FileInfo> Stat(const std::string& path) override {
    const Guard guard(this, "stat", path);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr) return FileInfo{};
    return FileInfo{true, node->directory, static_cast<int64_t>(node->data.size())};
  }
  absl::StatusOr<std::vector<std::string>> ListDirectory(const std::string& path) override {
    const Guard guard(this, "list", path);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr) return absl::NotFoundError(absl::StrCat("listing ", path));
    std::vector<std::string> names;
    for (const auto& [name, child] : node->entries) names.push_back(name);
    return names;
  }
  absl::Status CreateDirectory(const std::string& path) override {
    const Guard guard(this, "mkdir", path);
    if (!guard.status().ok()) return guard.status();
    const auto [parent, name] = Parent(path);
    if (parent == nullptr) return absl::NotFoundError(absl::StrCat("creating directory ", path));
    if (parent->entries.count(name) != 0) return absl::AlreadyExistsError(path);
    const auto node = std::make_shared<Node>();
    node->directory = true;
    Link(*parent, name, node);
    return absl::OkStatus();
  }
  absl::Status Rename(const std::string& from, const std::string& to) override {
    const Guard guard(this, "rename", to);
    if (!guard.status().ok()) return guard.status();
    const auto [from_parent, from_name] = Parent(from);
    const auto [to_parent, to_name] = Parent(to);
    CAROUSEL_CHECK_MSG(from_parent == to_parent, "renames stay within a directory");
    const auto it = from_parent->entries.find(from_name);
    if (it == from_parent->entries.end()) return absl::NotFoundError(from);
    const auto existing = to_parent->entries.find(to_name);
    if (existing != to_parent->entries.end() && existing->second->directory) {
      return absl::AlreadyExistsError(absl::StrCat("renaming to ", to));
    }
    // One change: both names or neither.
    Change change = {{from_name, nullptr}, {to_name, it->second}};
    Apply(change, &from_parent->entries);
    from_parent->journal.push_back(std::move(change));
    return absl::OkStatus();
  }
  absl::Status LinkFile(const std::string& from, const std::string& to) override {
    const Guard guard(this, "link", to);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(from);
    if (node == nullptr) return absl::NotFoundError(from);
    const auto [parent, name] = Parent(to);
    if (parent->entries.count(name) != 0) return absl::AlreadyExistsError(to);
    Link(*parent, name, node);
    return absl::OkStatus();
  }
  absl::Status RemoveFile(const std::string& path) override { return Remove("unlink", path, false); }
  absl::Status RemoveDirectory(const std::string& path) override { return Remove("rmdir", path, true); }
  absl::Status SyncDirectory(const std::string& path) override {
    const Guard guard(this, "fsync", path);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr || !node->directory) return absl::NotFoundError(path);
    node->durable_entries = node->entries;
    node->journal.clear();
    return absl::OkStatus();
  }
  absl::Status SyncFile(const std::string& path) override {
    const Guard guard(this, "fdatasync", path);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr || node->directory) return absl::NotFoundError(path);
    node->durable_bytes = node->data.size();
    return absl::OkStatus();
  }
  absl::Status DropCached(const std::string& path) override {
    const Guard guard(this, "fadvise", path);
    if (!guard.status().ok()) return guard.status();
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr || node->directory) return absl::NotFoundError(path);
    if (node->stored.has_value()) node->data = *node->stored;
    return absl::OkStatus();
  }
  absl::StatusOr<int64_t> FreeBytes(const std::string& path) override {
    const Guard guard(this, "statvfs", path);
    if (!guard.status().ok()) return guard.status();
    return free_bytes_;
  }
  absl::StatusOr<std::unique_ptr<FileLock>> Lock(const std::string& path, const std::string& owner) override {
    const Guard guard(this, "lock", path);
    if (!guard.status().ok()) return guard.status();
    if (!lock_owner_.empty()) return absl::FailedPreconditionError(lock_owner_);
    lock_owner_ = owner;
    return std::unique_ptr<FileLock>(std::make_unique<Held>(this));
  }

 private:
  struct Node;
  // Names and what they mean from now on; null: nothing.
  using Change = std::vector<std::pair<std::string, std::shared_ptr<Node>>>;
  using Entries = std::map<std::string, std::shared_ptr<Node>>;
  struct Node {
    bool directory = false;
    std::string data;
    size_t durable_bytes = 0;
    std::optional<std::string> stored;  // where that is not `data`: see DamageStored
    Entries entries, durable_entries;
    std::vector<Change> journal;  // since the last sync
  };

  // Counts the call, asks for a fault, and holds the lock.
  class Guard {
   public:
    Guard(MemoryFileSystem* files, const char* call, const std::string& path) : lock_(files->mutex_) {
      const int64_t index = files->calls_++;
      if (files->fault_) status_ = files->fault_(index, call, path);
    }
    const absl::Status& status() const { return status_; }

   private:
    std::lock_guard<std::mutex> lock_;
    absl::Status status_;
  };
  class Writer final : public WritableFile {
   public:
    Writer(MemoryFileSystem* files, std::string path, std::shared_ptr<Node> node)
        : files_(files), path_(std::move(path)), node_(std::move(node)) {}
    absl::Status Append(const void* data, int64_t num_bytes) override {
      const Guard guard(files_, "write", path_);
      const size_t n = static_cast<size_t>(guard.status().ok() ? num_bytes : num_bytes / 2);
      node_->data.append(static_cast<const char*>(data), n);
      return guard.status();
    }
    absl::Status Sync() override {
      const Guard guard(files_, "fdatasync", path_);
      if (guard.status().ok()) node_->durable_bytes = node_->data.size();
      return guard.status();
    }
    absl::Status Close() override { return Guard(files_, "close", path_).status(); }

   private:
    MemoryFileSystem* files_;
    std::string path_;
    std::shared_ptr<Node> node_;
  };
  class Reader final : public ReadableFile {
   public:
    Reader(MemoryFileSystem* files, std::string path, std::shared_ptr<Node> node)
        : files_(files), path_(std::move(path)), node_(std::move(node)) {}
    int64_t size() const override { return static_cast<int64_t>(node_->data.size()); }
    absl::Status ReadAt(int64_t offset, void* data, int64_t num_bytes) const override {
      const Guard guard(files_, "read", path_);
      if (!guard.status().ok()) return guard.status();
      if (offset + num_bytes > size()) return absl::DataLossError(absl::StrCat(path_, " ends too early"));
      std::copy_n(node_->data.data() + offset, num_bytes, static_cast<char*>(data));
      return absl::OkStatus();
    }

   private:
    MemoryFileSystem* files_;
    std::string path_;
    std::shared_ptr<Node> node_;
  };
  class Held final : public FileLock {
   public:
    explicit Held(MemoryFileSystem* files) : files_(files) {}
    ~Held() override { files_->lock_owner_.clear(); }
    std::string domain() const override { return "memory"; }

   private:
    MemoryFileSystem* files_;
  };

  static std::vector<std::string> Split(const std::string& path) {
    std::vector<std::string> parts;
    std::string part;
    for (const char c : path + "/") {
      if (c != '/') {
        part += c;
      } else if (!part.empty() && part != ".") {
        parts.push_back(std::exchange(part, ""));
      } else {
        part.clear();
      }
    }
    return parts;
  }
  std::shared_ptr<Node> Find(const std::string& path) const {
    std::shared_ptr<Node> node = root_;
    for (const std::string& part : Split(path)) {
      const auto it = node->entries.find(part);
      if (it == node->entries.end()) return nullptr;
      node = it->second;
    }
    return node;
  }
  std::pair<std::shared_ptr<Node>, std::string> Parent(const std::string& path) const {
    const std::vector<std::string> parts = Split(path);
    CAROUSEL_CHECK(!parts.empty());
    std::shared_ptr<Node> parent = Find(ParentPath(path));
    if (parent != nullptr && !parent->directory) parent = nullptr;
    return {parent, parts.back()};
  }
  static void Apply(const Change& change, Entries* entries) {
    for (const auto& [name, node] : change) {
      if (node == nullptr) {
        entries->erase(name);
      } else {
        (*entries)[name] = node;
      }
    }
  }
  static void Link(Node& parent, const std::string& name, std::shared_ptr<Node> node) {
    Change change = {{name, std::move(node)}};
    Apply(change, &parent.entries);
    parent.journal.push_back(std::move(change));
  }
  absl::Status Remove(const char* call, const std::string& path, bool directory) {
    const Guard guard(this, call, path);
    if (!guard.status().ok()) return guard.status();
    const auto [parent, name] = Parent(path);
    const std::shared_ptr<Node> node = Find(path);
    if (node == nullptr) return absl::NotFoundError(path);
    if (node->directory != directory) return absl::FailedPreconditionError(path);
    if (!node->entries.empty()) return absl::AlreadyExistsError(absl::StrCat(path, " is not empty"));
    Link(*parent, name, nullptr);
    return absl::OkStatus();
  }
  static void Recover(Node& node, Crash crash, std::mt19937_64& random) {
    const auto pick = [&](size_t least, size_t most) {
      if (crash == Crash::kLoseAll) return least;
      return crash == Crash::kKeepAll ? most : least + random() % (most - least + 1);
    };
    node.data.resize(pick(node.durable_bytes, node.data.size()));
    node.durable_bytes = node.data.size();
    const size_t kept = pick(0, node.journal.size());
    for (size_t i = 0; i < kept; ++i) Apply(node.journal[i], &node.durable_entries);
    node.journal.clear();
    node.entries = node.durable_entries;
    for (auto& [name, child] : node.entries) Recover(*child, crash, random);
  }
  static void Collect(const Node& node, const std::string& path, std::vector<std::string>* paths) {
    for (const auto& [name, child] : node.entries) {
      const std::string child_path = absl::StrCat(path, "/", name);
      if (!child->directory) paths->push_back(child_path);
      Collect(*child, child_path, paths);
    }
  }

  std::mutex mutex_;
  std::shared_ptr<Node> root_;
  Fault fault_;
  int64_t calls_ = 0;
  int64_t free_bytes_ = int64_t{1} << 50;
  std::string lock_owner_;
};

// The process dies before call number k.
inline MemoryFileSystem::Fault DeadFrom(int64_t k) {
  return [k](int64_t index, const std::string&, const std::string&) {
    return index < k ? absl::OkStatus() : absl::UnavailableError("the process is dead");
  };
}
// Both extremes, then any number in between.
inline MemoryFileSystem::Crash CrashNumber(int mode) {
  return mode == 0   ? MemoryFileSystem::Crash::kLoseAll
         : mode == 1 ? MemoryFileSystem::Crash::kKeepAll
                     : MemoryFileSystem::Crash::kRandom;
}
}  // namespace carousel

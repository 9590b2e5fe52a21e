#include "checkpoints/shard_plan.h"

#include <algorithm>
#include <set>
#include <utility>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/strings/str_join.h"
#include "checkpoints/closest_names.h"
#include "core/base/status_macros.h"

namespace carousel {
namespace pb = checkpoint;
namespace {

constexpr int64_t kDataAlignment = 4096;  // of the first tensor byte in a shard

std::string ShapeText(const std::vector<int64_t>& shape) {
  return absl::StrCat("[", absl::StrJoin(shape, ", "), "]");
}

// Lists what is wrong, at most so many lines.
std::string JoinProblems(const std::vector<std::string>& problems) {
  constexpr size_t kMost = 100;
  if (problems.size() <= kMost) return absl::StrJoin(problems, "\n  ");
  return absl::StrCat(absl::StrJoin(problems.begin(), problems.begin() + kMost, "\n  "), "\n  ... and ",
                      problems.size() - kMost, " more");
}

// "; those of ranks 0 and 2 overlap", if any do.
std::string Overlap(const PlannedTensor& tensor) {
  for (size_t a = 0; a < tensor.pieces.size(); ++a) {
    for (size_t b = a + 1; b < tensor.pieces.size(); ++b) {
      Box common;
      if (Intersect(tensor.pieces[a].box, tensor.pieces[b].box, &common)) {
        return absl::StrCat("; ranks ", tensor.pieces[a].rank, " and ", tensor.pieces[b].rank,
                            " both have those from ", ShapeText(common.offset), " on");
      }
    }
  }
  return "";
}
}  // namespace

pb::RankSlices DescribeSlices(const std::vector<StateSlice>& slices, const TrainState& state) {
  pb::RankSlices message;
  *message.mutable_state() = ToProto(state);
  for (const StateSlice& slice : slices) {
    pb::SliceDescription* const s = message.add_slices();
    s->set_name(slice.name);
    s->set_kind(ToProto(slice.kind));
    s->set_dtype(ToProto(slice.dtype));
    for (const int64_t d : slice.shape) s->add_shape(d);
    for (const int64_t o : slice.offset) s->add_offset(o);
    for (const int64_t n : slice.size) s->add_size(n);
    s->set_replica(slice.replica);
  }
  return message;
}

absl::StatusOr<std::vector<PlannedTensor>> PlanTensors(const std::vector<pb::RankSlices>& ranks) {
  std::map<std::pair<std::string, int>, PlannedTensor> tensors;
  std::map<std::pair<std::string, int>, std::vector<PlannedTensor::Piece>> replicas;
  std::vector<std::string> problems;
  for (size_t rank = 0; rank < ranks.size(); ++rank) {
    for (int i = 0; i < ranks[rank].slices_size(); ++i) {
      const pb::SliceDescription& s = ranks[rank].slices(i);
      const std::vector<int64_t> shape(s.shape().begin(), s.shape().end());
      Box box = {{s.offset().begin(), s.offset().end()}, {s.size().begin(), s.size().end()}};
      const auto [it, added] = tensors.try_emplace({s.name(), s.kind()});
      PlannedTensor& tensor = it->second;
      if (added) {
        tensor.name = s.name();
        tensor.kind = FromProto(s.kind());
        tensor.dtype = FromProto(s.dtype());
        tensor.shape = shape;
      }
      const bool empty = NumElems(box.size) == 0;
      if (tensor.dtype != FromProto(s.dtype()) || tensor.shape != shape) {
        problems.push_back(absl::StrCat(Describe(s.name(), tensor.kind), " has shape ",
                                        ShapeText(tensor.shape), " ", NameOf(tensor.dtype),
                                        " in one slice and ", ShapeText(shape), " ",
                                        NameOf(FromProto(s.dtype())), " on rank ", rank));
      } else if (static_cast<int64_t>(shape.size()) > kMaxDims || NumElems(shape) < 0 ||
                 (!empty && !BoxFits(shape, box))) {
        problems.push_back(absl::StrCat(Describe(s.name(), tensor.kind), " of shape ", ShapeText(shape),
                                        ": rank ", rank, " has a box of ", ShapeText(box.size), " at ",
                                        ShapeText(box.offset), ", which it has not"));
      } else if (!empty) {
        (s.replica() ? replicas[it->first] : tensor.pieces)
            .push_back({static_cast<int>(rank), i, std::move(box)});
      }
    }
  }
  const bool sound = problems.empty();  // else what is missing may be what was refused
  std::vector<PlannedTensor> result;
  for (auto& [key, tensor] : tensors) {
    std::sort(tensor.pieces.begin(), tensor.pieces.end(), [&](const auto& a, const auto& b) {
      return std::pair(FirstElem(tensor.shape, a.box), a.rank) <
             std::pair(FirstElem(tensor.shape, b.box), b.rank);
    });
    std::vector<Box> boxes;
    std::map<std::pair<std::vector<int64_t>, std::vector<int64_t>>, size_t> piece_of;
    for (const PlannedTensor::Piece& piece : tensor.pieces) {
      piece_of[{piece.box.offset, piece.box.size}] = boxes.size();
      boxes.push_back(piece.box);
    }
    if (sound && !BoxesTile(tensor.shape, boxes)) {
      int64_t held = 0;
      for (const Box& box : boxes) held += box.num_elems();
      problems.push_back(absl::StrCat(Describe(tensor.name, tensor.kind), " of shape ",
                                      ShapeText(tensor.shape),
                                      ": the slices of all ranks leave out or repeat elements; they have ",
                                      held, " of ", NumElems(tensor.shape), Overlap(tensor)));
    }
    for (const PlannedTensor::Piece& replica : replicas[key]) {
      const auto piece = piece_of.find({replica.box.offset, replica.box.size});
      if (piece != piece_of.end()) {
        tensor.replicas.push_back({replica.rank, replica.slice, piece->second});
      } else if (sound) {
        problems.push_back(absl::StrCat(Describe(tensor.name, tensor.kind), ": rank ", replica.rank,
                                        " has a replica of the box of ", ShapeText(replica.box.size), " at ",
                                        ShapeText(replica.box.offset), ", which no rank saves"));
      }
    }
    result.push_back(std::move(tensor));
  }
  if (!problems.empty()) {
    return absl::InvalidArgumentError(
        absl::StrCat("the state of the ranks does not fit together:\n  ", JoinProblems(problems)));
  }
  return result;
}

StateDigests CombineDigests(const std::vector<PlannedTensor>& tensors,
                            const std::vector<std::vector<uint64_t>>& digests) {
  const auto digest = [&](int rank, int slice) {
    return digests[static_cast<size_t>(rank)][static_cast<size_t>(slice)];
  };
  StateDigests result;
  for (const PlannedTensor& tensor : tensors) {
    uint64_t sum = 0;
    for (const PlannedTensor::Piece& piece : tensor.pieces) sum += digest(piece.rank, piece.slice);
    result.tensors.push_back(sum);
    for (const PlannedTensor::Replica& replica : tensor.replicas) {
      const PlannedTensor::Piece& piece = tensor.pieces[replica.piece];
      if (digest(replica.rank, replica.slice) != digest(piece.rank, piece.slice)) {
        result.different_replicas.push_back(absl::StrCat(Describe(tensor.name, tensor.kind), ": rank ",
                                                         replica.rank, " and rank ", piece.rank));
      }
    }
  }
  return result;
}

std::string BoxMetadata(const std::vector<int64_t>& shape, const Box& box) {
  return absl::StrCat("{\"global_shape\":[", absl::StrJoin(shape, ","), "],\"offset\":[",
                      absl::StrJoin(box.offset, ","), "]}");
}

namespace {

// Fixes the order of the boxes in the file, the header, and every box's place.
absl::Status LayOut(const std::vector<PlannedTensor>& tensors, std::map<std::string, std::string> metadata,
                    PlannedFile* file) {
  std::vector<SafetensorsSpec> specs;
  std::map<std::string, size_t> box_of_key;
  for (size_t i = 0; i < file->boxes.size(); ++i) {
    const PlannedBox& box = file->boxes[i];
    const PlannedTensor& tensor = tensors[static_cast<size_t>(box.tensor)];
    const std::string key = BoxKey(tensor.name, tensor.kind, box.k);
    metadata[key] = BoxMetadata(tensor.shape, box.box);
    box_of_key[key] = i;
    specs.push_back({key, ToSafetensors(tensor.dtype), box.box.size});
  }
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsLayout layout,
                            PlanSafetensors(std::move(specs), metadata, kDataAlignment));
  std::vector<PlannedBox> ordered;
  for (const SafetensorsEntry& entry : layout.tensors) {
    ordered.push_back(std::move(file->boxes[box_of_key.at(entry.name)]));
    ordered.back().byte_offset = layout.data_begin() + entry.begin;
  }
  file->boxes = std::move(ordered);
  file->prefix = layout.prefix;
  file->num_bytes = layout.file_bytes;
  return absl::OkStatus();
}
}  // namespace

absl::StatusOr<std::vector<PlannedFile>> PlanFiles(const std::vector<PlannedTensor>& tensors,
                                                   int64_t max_file_bytes,
                                                   const std::map<std::string, std::string>& metadata) {
  // Boxes by what kind of file they go to and who writes it, in the order of the tensors.
  std::map<std::pair<bool, int>, std::vector<PlannedBox>> boxes_of;  // (optimizer state?, rank)
  for (size_t t = 0; t < tensors.size(); ++t) {
    int64_t k = 0;
    for (const PlannedTensor::Piece& piece : tensors[t].pieces) {
      boxes_of[{tensors[t].kind != StateKind::kWeight, piece.rank}].push_back(
          {static_cast<int>(t), k++, piece.slice, piece.box, 0});
    }
  }
  std::vector<PlannedFile> files;
  int num_model = 0, num_optim = 0;
  for (auto& [where, boxes] : boxes_of) {
    int64_t file_bytes = 0;
    bool open = false;
    for (PlannedBox& box : boxes) {
      const int64_t bytes = box.box.num_elems() * SizeOf(tensors[static_cast<size_t>(box.tensor)].dtype);
      if (!open || bytes > max_file_bytes - file_bytes) {
        files.emplace_back();
        files.back().rank = where.second;
        file_bytes = 0;
        open = true;
        ++(where.first ? num_optim : num_model);
      }
      file_bytes += bytes;
      files.back().boxes.push_back(std::move(box));
    }
  }
  for (int i = 0; i < static_cast<int>(files.size()); ++i) {
    PlannedFile& file = files[static_cast<size_t>(i)];
    file.name = i < num_model ? absl::StrFormat("model-%05d-of-%05d.safetensors", i, num_model)
                              : absl::StrFormat("optim-%05d-of-%05d.safetensors", i - num_model, num_optim);
    CAROUSEL_RETURN_IF_ERROR(LayOut(tensors, metadata, &file));
  }
  return files;
}

void AddTensors(const std::vector<PlannedTensor>& tensors, const std::vector<PlannedFile>& files,
                pb::Manifest* manifest) {
  for (const PlannedTensor& tensor : tensors) {
    pb::TensorEntry* const entry = manifest->add_tensors();
    entry->set_name(tensor.name);
    entry->set_kind(ToProto(tensor.kind));
    entry->set_dtype(ToProto(tensor.dtype));
    for (const int64_t d : tensor.shape) entry->add_shape(d);
  }
  // Every tensor's boxes, by their number.
  std::vector<std::map<int64_t, pb::Box>> boxes(tensors.size());
  for (size_t f = 0; f < files.size(); ++f) {
    for (const PlannedBox& planned : files[f].boxes) {
      pb::Box& box = boxes[static_cast<size_t>(planned.tensor)][planned.k];
      for (const int64_t o : planned.box.offset) box.add_offset(o);
      for (const int64_t s : planned.box.size) box.add_size(s);
      box.set_file(static_cast<int64_t>(f));
      box.set_byte_offset(planned.byte_offset);
    }
  }
  for (size_t t = 0; t < tensors.size(); ++t) {
    for (auto& [k, box] : boxes[t]) {
      *manifest->mutable_tensors(static_cast<int>(t))->add_boxes() = std::move(box);
    }
  }
}

absl::Status CompareTensors(const std::vector<PlannedTensor>& wanted, const pb::Manifest& manifest,
                            const std::string& dir) {
  std::set<StateKind> kinds;
  for (const PlannedTensor& tensor : wanted) kinds.insert(tensor.kind);
  std::map<std::pair<std::string, int>, const pb::TensorEntry*> saved;
  std::vector<std::string> saved_names;
  for (const pb::TensorEntry& tensor : manifest.tensors()) {
    if (kinds.count(FromProto(tensor.kind())) == 0) continue;
    saved[{tensor.name(), tensor.kind()}] = &tensor;
    saved_names.push_back(tensor.name());
  }
  std::vector<std::string> problems;
  for (const PlannedTensor& tensor : wanted) {
    const std::string what = Describe(tensor.name, tensor.kind);
    const auto it = saved.find({tensor.name, ToProto(tensor.kind)});
    if (it == saved.end()) {
      problems.push_back(absl::StrCat(what, " is wanted and is not in the checkpoint",
                                      ClosestNames(tensor.name, saved_names)));
      continue;
    }
    const pb::TensorEntry& entry = *it->second;
    if (ShapeOf(entry) != tensor.shape) {
      problems.push_back(absl::StrCat(what, " has shape ", ShapeText(ShapeOf(entry)), " in the checkpoint; ",
                                      ShapeText(tensor.shape), " is wanted"));
    }
    if (FromProto(entry.dtype()) != tensor.dtype) {
      problems.push_back(absl::StrCat(what, " has dtype ", NameOf(FromProto(entry.dtype())),
                                      " in the checkpoint; ", NameOf(tensor.dtype), " is wanted"));
    }
    saved.erase(it);
  }
  for (const auto& [key, entry] : saved) {
    problems.push_back(absl::StrCat(Describe(entry->name(), FromProto(entry->kind())), " of shape ",
                                    ShapeText(ShapeOf(*entry)),
                                    " is in the checkpoint and the model has no such tensor"));
  }
  if (problems.empty()) return absl::OkStatus();
  return absl::FailedPreconditionError(absl::StrCat(
      dir, " is a checkpoint of another model; use the config it was made with (", dir, "/", kConfigFile,
      ") or another run_dir. ", problems.size(), " differences:\n  ", JoinProblems(problems)));
}

void AppendRuns(const pb::TensorEntry& tensor, const Box& wanted, int64_t tag, std::vector<FileRun>* runs) {
  const std::vector<int64_t> shape = ShapeOf(tensor);
  const int64_t elem_bytes = SizeOf(FromProto(tensor.dtype()));
  for (const pb::Box& entry : tensor.boxes()) {
    const Box box = BoxOf(entry);
    Box common;
    if (!Intersect(wanted, box, &common)) continue;
    ForEachRun(shape, box, common, [&](int64_t elem, int64_t box_elem, int64_t num) {
      runs->push_back({entry.file(), entry.byte_offset() + box_elem * elem_bytes, elem, num, tag});
    });
  }
}
}  // namespace carousel

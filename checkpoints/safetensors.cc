#include "checkpoints/safetensors.h"

#include <bit>
#include <cstring>
#include <utility>

#include "absl/strings/str_cat.h"
#include "checkpoints/closest_names.h"
#include "core/base/status_macros.h"

namespace carousel {

// The format is little-endian, and so is everything that this program runs on.
static_assert(std::endian::native == std::endian::little);

SafetensorsDType ToSafetensors(DType dtype) {
  switch (dtype) {
    case DType::kF32:
      return SafetensorsDType::kF32;
    case DType::kBF16:
      return SafetensorsDType::kBF16;
    case DType::kF64:
      return SafetensorsDType::kF64;
    case DType::kI32:
      return SafetensorsDType::kI32;
    case DType::kI64:
      return SafetensorsDType::kI64;
    case DType::kU8:
      return SafetensorsDType::kU8;
  }
  CheckFailed(__FILE__, __LINE__, "unknown dtype");
}

absl::StatusOr<DType> FromSafetensors(SafetensorsDType dtype) {
  for (const DType own : {DType::kF32, DType::kBF16, DType::kF64, DType::kI32, DType::kI64, DType::kU8}) {
    if (ToSafetensors(own) == dtype) return own;
  }
  return absl::UnimplementedError(absl::StrCat("dtype ", NameOf(dtype), " cannot be used as it is"));
}

float HalfToFloat(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t exponent = (half >> 10) & 0x1fu, fraction = half & 0x3ffu;
  if (exponent == 0) {  // zero or subnormal: fraction * 2^-24
    const float magnitude = static_cast<float>(fraction) * 0x1p-24f;
    return std::bit_cast<float>(std::bit_cast<uint32_t>(magnitude) | sign);
  }
  if (exponent == 31) return std::bit_cast<float>(sign | 0x7f800000u | (fraction << 13));
  return std::bit_cast<float>(sign | ((exponent + 112) << 23) | (fraction << 13));
}

uint16_t FloatToHalf(float value) {
  const uint32_t bits = std::bit_cast<uint32_t>(value);
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  const uint32_t magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u);   // NaN
  if (magnitude >= 0x47800000u) return static_cast<uint16_t>(sign | 0x7c00u);  // 65536 and more
  if (magnitude < 0x38800000u) {
    // Below 2^-14: a multiple of 2^-24. Adding 0.5 aligns it, and the addition rounds to nearest even.
    const float aligned = std::bit_cast<float>(magnitude) + 0.5f;
    return static_cast<uint16_t>(sign | (std::bit_cast<uint32_t>(aligned) - 0x3f000000u));
  }
  // 13 bits go; a carry into the exponent gives the next power of two, or infinity.
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

namespace {

// Elements of type In as Out, from bytes of any alignment.
template <class In, class Out>
void ConvertFrom(const uint8_t* bytes, std::vector<Out>* out) {
  for (size_t i = 0; i < out->size(); ++i) {
    In value;
    std::memcpy(&value, bytes + i * sizeof(In), sizeof(In));
    if constexpr (std::is_same_v<In, bfloat16>) {
      (*out)[i] = static_cast<Out>(static_cast<float>(value));
    } else {
      (*out)[i] = static_cast<Out>(value);
    }
  }
}

// False if the type is not an integer.
template <class Out>
bool ConvertInteger(SafetensorsDType dtype, const uint8_t* bytes, std::vector<Out>* out) {
  switch (dtype) {
    case SafetensorsDType::kBOOL:
    case SafetensorsDType::kU8:
      return ConvertFrom<uint8_t>(bytes, out), true;
    case SafetensorsDType::kI8:
      return ConvertFrom<int8_t>(bytes, out), true;
    case SafetensorsDType::kI16:
      return ConvertFrom<int16_t>(bytes, out), true;
    case SafetensorsDType::kU16:
      return ConvertFrom<uint16_t>(bytes, out), true;
    case SafetensorsDType::kI32:
      return ConvertFrom<int32_t>(bytes, out), true;
    case SafetensorsDType::kU32:
      return ConvertFrom<uint32_t>(bytes, out), true;
    case SafetensorsDType::kI64:
      return ConvertFrom<int64_t>(bytes, out), true;
    case SafetensorsDType::kU64:
      return ConvertFrom<uint64_t>(bytes, out), true;
    default:
      return false;
  }
}

template <class Out>
absl::StatusOr<std::vector<Out>> ReadAs(const SafetensorsReader& reader, const std::string& name) {
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsEntry entry, reader.Get(name));
  const uint8_t* const bytes = static_cast<const uint8_t*>(reader.data(entry));
  // A valid file holds at least half a byte per element: this is no larger than 16 times the file.
  std::vector<Out> out(static_cast<size_t>(entry.num_elems()));
  switch (entry.dtype) {
    case SafetensorsDType::kF64:
      return ConvertFrom<double>(bytes, &out), out;
    case SafetensorsDType::kF32:
      return ConvertFrom<float>(bytes, &out), out;
    case SafetensorsDType::kBF16:
      return ConvertFrom<bfloat16>(bytes, &out), out;
    case SafetensorsDType::kF16:
      for (size_t i = 0; i < out.size(); ++i) {
        uint16_t half;
        std::memcpy(&half, bytes + 2 * i, 2);
        out[i] = static_cast<Out>(HalfToFloat(half));
      }
      return out;
    default:
      if (ConvertInteger(entry.dtype, bytes, &out)) return out;
      return absl::UnimplementedError(absl::StrCat(reader.path(), ": tensor \"", name, "\" has dtype ",
                                                   NameOf(entry.dtype), ", which cannot be converted"));
  }
}
}  // namespace

absl::StatusOr<SafetensorsHeader> ReadSafetensorsHeader(const ReadableFile& file, const std::string& path) {
  if (file.size() < 8) {
    return absl::InvalidArgumentError(
        absl::StrCat(path, " is no safetensors file: it has ", file.size(), " bytes"));
  }
  char first[8];
  CAROUSEL_RETURN_IF_ERROR(file.ReadAt(0, first, 8));
  CAROUSEL_ASSIGN_OR_RETURN(const int64_t header_bytes, SafetensorsHeaderBytes(first, file.size(), path));
  std::string prefix(static_cast<size_t>(header_bytes), '\0');
  CAROUSEL_RETURN_IF_ERROR(file.ReadAt(0, prefix.data(), header_bytes));
  return ParseSafetensorsHeader(prefix, file.size(), path);
}

absl::StatusOr<SafetensorsReader> SafetensorsReader::Open(const std::string& path, FileSystem* files) {
  PosixFileSystem posix;
  SafetensorsReader reader;
  reader.path_ = path;
  CAROUSEL_ASSIGN_OR_RETURN(const std::unique_ptr<ReadableFile> file,
                            (files != nullptr ? *files : posix).OpenFile(path));
  CAROUSEL_ASSIGN_OR_RETURN(reader.header_, ReadSafetensorsHeader(*file, path));
  const int64_t num_bytes = file->size() - reader.header_.data_begin;
  reader.data_ = std::make_unique_for_overwrite<std::byte[]>(static_cast<size_t>(num_bytes));
  CAROUSEL_RETURN_IF_ERROR(file->ReadAt(reader.header_.data_begin, reader.data_.get(), num_bytes));
  return reader;
}

absl::StatusOr<SafetensorsEntry> SafetensorsReader::Get(const std::string& name) const {
  if (const SafetensorsEntry* const entry = Find(name)) return *entry;
  std::vector<std::string> names;
  for (const SafetensorsEntry& t : tensors()) names.push_back(t.name);
  return absl::NotFoundError(absl::StrCat(path_, " has no tensor \"", name, "\"", ClosestNames(name, names)));
}

absl::StatusOr<std::vector<double>> SafetensorsReader::ReadAsDouble(const std::string& name) const {
  return ReadAs<double>(*this, name);
}
absl::StatusOr<std::vector<float>> SafetensorsReader::ReadAsFloat(const std::string& name) const {
  return ReadAs<float>(*this, name);
}

absl::StatusOr<std::vector<int64_t>> SafetensorsReader::ReadAsInt64(const std::string& name) const {
  CAROUSEL_ASSIGN_OR_RETURN(const SafetensorsEntry entry, Get(name));
  const uint8_t* const bytes = static_cast<const uint8_t*>(data(entry));
  const std::string which = absl::StrCat(path_, ": tensor \"", name, "\"");
  if (BitsOf(entry.dtype) < 8) return absl::InvalidArgumentError(absl::StrCat(which, " is not integer"));
  std::vector<int64_t> out(static_cast<size_t>(entry.num_elems()));
  if (!ConvertInteger(entry.dtype, bytes, &out)) {
    return absl::InvalidArgumentError(
        absl::StrCat(which, " has dtype ", NameOf(entry.dtype), "; integers are needed"));
  }
  if (entry.dtype == SafetensorsDType::kU64) {
    for (const int64_t value : out) {
      if (value < 0) return absl::OutOfRangeError(absl::StrCat(which, " has a number above 2^63 - 1"));
    }
  }
  return out;
}

absl::StatusOr<std::unique_ptr<SafetensorsWriter>> SafetensorsWriter::Create(const std::string& path,
                                                                             const SafetensorsLayout& layout,
                                                                             FileSystem& files) {
  std::unique_ptr<SafetensorsWriter> writer(new SafetensorsWriter);
  writer->path_ = path;
  writer->layout_ = layout;
  CAROUSEL_ASSIGN_OR_RETURN(writer->file_, files.CreateFile(path));
  CAROUSEL_RETURN_IF_ERROR(writer->file_->Append(layout.prefix.data(), layout.data_begin()));
  return writer;
}

absl::Status SafetensorsWriter::Append(const std::string& name, const void* data, int64_t num_bytes) {
  const std::vector<SafetensorsEntry>& tensors = layout_.tensors;
  // Leave those that are complete; an empty tensor is complete without an Append.
  while (tensor_ < tensors.size() && tensor_bytes_ == tensors[tensor_].num_bytes() &&
         tensors[tensor_].name != name) {
    ++tensor_;
    tensor_bytes_ = 0;
  }
  CAROUSEL_CHECK_MSG(tensor_ < tensors.size() && tensors[tensor_].name == name,
                     absl::StrCat(path_, ": ", name, " is not the next tensor"));
  CAROUSEL_CHECK_MSG(num_bytes >= 0 && num_bytes <= tensors[tensor_].num_bytes() - tensor_bytes_,
                     absl::StrCat(path_, ": too many bytes for ", name));
  CAROUSEL_RETURN_IF_ERROR(file_->Append(data, num_bytes));
  tensor_bytes_ += num_bytes;
  return absl::OkStatus();
}

absl::Status SafetensorsWriter::Finish() {
  const std::vector<SafetensorsEntry>& tensors = layout_.tensors;
  while (tensor_ < tensors.size() && tensor_bytes_ == tensors[tensor_].num_bytes()) {
    ++tensor_;
    tensor_bytes_ = 0;
  }
  CAROUSEL_CHECK_MSG(
      tensor_ == tensors.size(),
      absl::StrCat(path_, ": ", tensor_ < tensors.size() ? tensors[tensor_].name : "", " is not complete"));
  CAROUSEL_RETURN_IF_ERROR(file_->Sync());
  return file_->Close();
}
}  // namespace carousel

// CudnnGraph: operations of cuDNN as a graph, through the backend API: tensors with unique ids, operations
// between them, the engines that cuDNN's heuristics offer for the whole, and execution plans. For
// cudnn_candidates alone; no op of a backend uses it.
//
// Every status of the library is looked at. The first one that is not a success stays with the graph, as
// text: what failed, the status' name and the library's last message. Later calls then do nothing.
#pragma once
#include <cudnn.h>

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "core/base/dtype.h"

namespace carousel {

// A descriptor of the backend API; owned.
class CudnnDescriptor {
 public:
  CudnnDescriptor() = default;
  CudnnDescriptor(CudnnDescriptor&& other) noexcept : raw_(other.raw_) { other.raw_ = nullptr; }
  CudnnDescriptor& operator=(CudnnDescriptor&& other) noexcept {
    std::swap(raw_, other.raw_);
    return *this;
  }
  ~CudnnDescriptor();
  cudnnBackendDescriptor_t& raw() { return raw_; }

 private:
  cudnnBackendDescriptor_t raw_ = nullptr;
};

// What plans are made for.
class CudnnTarget {
 public:
  // The calling thread's current GPU; plans run on `stream` (a cudaStream_t). Null and *error if it cannot
  // be.
  static std::unique_ptr<CudnnTarget> OnStream(void* stream, std::string* error);
  // A GPU that is described by cuDNN's properties in JSON and need not be here: plans can be made, not run.
  static std::unique_ptr<CudnnTarget> Described(const std::string& properties_json, std::string* error);
  ~CudnnTarget();
  CudnnTarget(const CudnnTarget&) = delete;
  CudnnTarget& operator=(const CudnnTarget&) = delete;

  bool runs() const { return handle_ != nullptr; }

 private:
  friend class CudnnGraph;
  CudnnTarget() = default;
  cudnnHandle_t handle_ = nullptr;
  CudnnDescriptor properties_;  // where there is no handle
};

// One engine's way to run a graph.
struct CudnnPlan {
  std::string name;  // "engine 4 (A)": global index and the heuristics that offered it
  int64_t workspace_bytes = 0;
  CudnnDescriptor configuration, plan;
  CudnnDescriptor pack;  // the tensors' memory and the workspace, from the first run on
};
struct CudnnPlans {
  std::vector<CudnnPlan> plans;  // in the order of the heuristics
  int num_not_reproducible = 0;  // offered engines whose bits differ from run to run: left out
  std::string refusal;           // why there is no plan; empty if there is one
};

class CudnnGraph {
 public:
  using Id = int64_t;  // of a tensor; 0: none
  using Dims = std::vector<int64_t>;

  explicit CudnnGraph(CudnnTarget* target) : target_(*target) {}  // the target must outlive the graph

  // `memory`: on the GPU, 16-byte aligned; may be null where the target does not run.
  Id AddTensor(DType dtype, const Dims& dims, const Dims& strides, void* memory);
  Id AddVirtual(DType dtype, const Dims& dims, const Dims& strides);  // between two operations, never stored
  Id AddScalar(float value);                                          // by value

  struct NormForward {
    cudnnBackendNormMode_t mode;
    Id y, mean = 0, rstd, x, scale, bias = 0, epsilon;
  };
  struct NormBackward {
    cudnnBackendNormMode_t mode;
    Id dx, dscale, dbias = 0, dy, x, scale, mean = 0, rstd;
  };
  // Cross-correlation in two spatial dims, stride 1; as many groups as x has channels for one of w.
  struct Convolution {
    enum class Of { kOutput, kData, kWeights };
    Of result;       // which of the three is computed from the other two
    Id x, w, y;      // or their gradients
    Dims pre, post;  // zeros before and after x in each spatial dim
  };
  void Add(const NormForward& a);
  void Add(const NormBackward& a);
  void Add(const Convolution& a);
  void AddSwish(Id y, Id x);  // y = x sigmoid(x)

  // Asks the heuristics, mode A, then fallback if no plan came of it; makes every plan that the library can
  // make. To be called once, after the last operation.
  CudnnPlans MakePlans();
  // Enqueues. REQUIRES: target->runs(), and workspace of at least plan.workspace_bytes, in every call the
  // same.
  bool Run(CudnnPlan& plan, void* workspace, std::string* error);

 private:
  struct TensorEntry {
    CudnnDescriptor descriptor;
    void* memory = nullptr;
    bool is_virtual = false;
    float scalar = 0;
    bool is_scalar = false;
  };
  bool Check(cudnnStatus_t status, const char* what);
  bool Create(CudnnDescriptor* d, cudnnBackendDescriptorType_t type, const char* what);
  bool Set(CudnnDescriptor& d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
           int64_t count, const void* values, const char* what);
  bool SetTensor(CudnnDescriptor& d, cudnnBackendAttributeName_t name, Id id, const char* what);
  bool Finalize(CudnnDescriptor& d, const char* what);
  Id AddEntry(DType dtype, const Dims& dims, const Dims& strides, TensorEntry entry);
  bool FinalizeGraph();
  bool SetTarget(CudnnDescriptor& d, cudnnBackendAttributeName_t handle,
                 cudnnBackendAttributeName_t properties, const char* what);
  std::vector<CudnnDescriptor> Offers(cudnnBackendHeurMode_t mode);
  void MakePlan(CudnnDescriptor configuration, const char* heuristics, CudnnPlans* plans);
  void MakePack(CudnnPlan& plan, void* workspace);

  CudnnTarget& target_;
  std::vector<TensorEntry> tensors_;  // id - 1
  std::vector<CudnnDescriptor> parts_, operations_;
  CudnnDescriptor graph_;
  std::string error_;
};

// "CUDNN_STATUS_... : the library's last message".
std::string CudnnStatusText(cudnnStatus_t status);
}  // namespace carousel

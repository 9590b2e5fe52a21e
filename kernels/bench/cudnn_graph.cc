#include "kernels/bench/cudnn_graph.h"

#include <algorithm>
#include <utility>

#include "core/base/check.h"

namespace carousel {
namespace {
constexpr int64_t kMaxOffers = 16;
constexpr int64_t kMaxNotes = CUDNN_NUMERICAL_NOTE_TYPE_COUNT;
constexpr int64_t kAlignment = 16;

cudnnDataType_t DataTypeOf(DType dtype) {
  CAROUSEL_CHECK(dtype == DType::kBF16 || dtype == DType::kF32);
  return dtype == DType::kBF16 ? CUDNN_DATA_BFLOAT16 : CUDNN_DATA_FLOAT;
}
}  // namespace

std::string CudnnStatusText(cudnnStatus_t status) {
  char message[1024] = "";
  cudnnGetLastErrorString(message, sizeof message);
  std::string text = cudnnGetErrorString(status);
  if (message[0] != '\0') text += std::string(": ") + message;
  // one line, fit for a cell of a table
  std::replace(text.begin(), text.end(), '\n', ' ');
  std::replace(text.begin(), text.end(), '|', '/');
  while (!text.empty() && text.back() == ' ') text.pop_back();
  return text;
}

CudnnDescriptor::~CudnnDescriptor() {
  if (raw_ != nullptr) cudnnBackendDestroyDescriptor(raw_);  // nothing could be done about a failure
}

// ---- the target
std::unique_ptr<CudnnTarget> CudnnTarget::OnStream(void* stream, std::string* error) {
  std::unique_ptr<CudnnTarget> target(new CudnnTarget);
  cudnnStatus_t status = cudnnCreate(&target->handle_);
  if (status == CUDNN_STATUS_SUCCESS) {
    status = cudnnSetStream(target->handle_, static_cast<cudaStream_t>(stream));
  } else {
    target->handle_ = nullptr;
  }
  if (status == CUDNN_STATUS_SUCCESS) return target;
  *error = "cuDNN cannot use this GPU: " + CudnnStatusText(status);
  return nullptr;
}

std::unique_ptr<CudnnTarget> CudnnTarget::Described(const std::string& properties_json, std::string* error) {
#if CUDNN_VERSION >= 91100
  std::unique_ptr<CudnnTarget> target(new CudnnTarget);
  CudnnDescriptor& d = target->properties_;
  cudnnStatus_t status = cudnnBackendCreateDescriptor(CUDNN_BACKEND_DEVICEPROP_DESCRIPTOR, &d.raw());
  if (status == CUDNN_STATUS_SUCCESS) {
    status = cudnnBackendSetAttribute(d.raw(), CUDNN_ATTR_DEVICEPROP_JSON_REPRESENTATION, CUDNN_TYPE_CHAR,
                                      static_cast<int64_t>(properties_json.size()), properties_json.data());
  }
  if (status == CUDNN_STATUS_SUCCESS) status = cudnnBackendFinalize(d.raw());
  if (status == CUDNN_STATUS_SUCCESS) return target;
  *error = "cuDNN does not take the description of the GPU: " + CudnnStatusText(status);
#else
  static_cast<void>(properties_json);
  *error = "this program was built with a cuDNN before 9.11, which cannot plan for a GPU that is not here";
#endif
  return nullptr;
}

CudnnTarget::~CudnnTarget() {
  if (handle_ != nullptr) cudnnDestroy(handle_);
}

// ---- statuses and attributes
bool CudnnGraph::Check(cudnnStatus_t status, const char* what) {
  if (!error_.empty()) return false;
  if (status != CUDNN_STATUS_SUCCESS) error_ = std::string(what) + ": " + CudnnStatusText(status);
  return error_.empty();
}
bool CudnnGraph::Create(CudnnDescriptor* d, cudnnBackendDescriptorType_t type, const char* what) {
  return error_.empty() && Check(cudnnBackendCreateDescriptor(type, &d->raw()), what);
}
bool CudnnGraph::Set(CudnnDescriptor& d, cudnnBackendAttributeName_t name, cudnnBackendAttributeType_t type,
                     int64_t count, const void* values, const char* what) {
  return error_.empty() && Check(cudnnBackendSetAttribute(d.raw(), name, type, count, values), what);
}
bool CudnnGraph::SetTensor(CudnnDescriptor& d, cudnnBackendAttributeName_t name, Id id, const char* what) {
  if (!error_.empty() || id == 0) return error_.empty();
  CudnnDescriptor& tensor = tensors_.at(static_cast<size_t>(id - 1)).descriptor;
  return Set(d, name, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &tensor.raw(), what);
}
bool CudnnGraph::Finalize(CudnnDescriptor& d, const char* what) {
  return error_.empty() && Check(cudnnBackendFinalize(d.raw()), what);
}
bool CudnnGraph::SetTarget(CudnnDescriptor& d, cudnnBackendAttributeName_t handle,
                           cudnnBackendAttributeName_t properties, const char* what) {
  if (target_.runs()) return Set(d, handle, CUDNN_TYPE_HANDLE, 1, &target_.handle_, what);
  return Set(d, properties, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &target_.properties_.raw(), what);
}

// ---- tensors
CudnnGraph::Id CudnnGraph::AddEntry(DType dtype, const Dims& dims, const Dims& strides, TensorEntry entry) {
  CAROUSEL_CHECK_EQ(dims.size(), strides.size());
  const char* what = "a tensor";
  const Id id = static_cast<Id>(tensors_.size()) + 1;
  const cudnnDataType_t type = DataTypeOf(dtype);
  const auto rank = static_cast<int64_t>(dims.size());
  CudnnDescriptor& d = entry.descriptor;
  Create(&d, CUDNN_BACKEND_TENSOR_DESCRIPTOR, what);
  Set(d, CUDNN_ATTR_TENSOR_DATA_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &type, what);
  Set(d, CUDNN_ATTR_TENSOR_DIMENSIONS, CUDNN_TYPE_INT64, rank, dims.data(), what);
  Set(d, CUDNN_ATTR_TENSOR_STRIDES, CUDNN_TYPE_INT64, rank, strides.data(), what);
  Set(d, CUDNN_ATTR_TENSOR_UNIQUE_ID, CUDNN_TYPE_INT64, 1, &id, what);
  Set(d, CUDNN_ATTR_TENSOR_BYTE_ALIGNMENT, CUDNN_TYPE_INT64, 1, &kAlignment, what);
  Set(d, CUDNN_ATTR_TENSOR_IS_VIRTUAL, CUDNN_TYPE_BOOLEAN, 1, &entry.is_virtual, what);
  Set(d, CUDNN_ATTR_TENSOR_IS_BY_VALUE, CUDNN_TYPE_BOOLEAN, 1, &entry.is_scalar, what);
  Finalize(d, what);
  tensors_.push_back(std::move(entry));
  return id;
}
CudnnGraph::Id CudnnGraph::AddTensor(DType dtype, const Dims& dims, const Dims& strides, void* memory) {
  TensorEntry entry;
  entry.memory = memory;
  return AddEntry(dtype, dims, strides, std::move(entry));
}
CudnnGraph::Id CudnnGraph::AddVirtual(DType dtype, const Dims& dims, const Dims& strides) {
  TensorEntry entry;
  entry.is_virtual = true;
  return AddEntry(dtype, dims, strides, std::move(entry));
}
CudnnGraph::Id CudnnGraph::AddScalar(float value) {
  TensorEntry entry;
  entry.scalar = value;
  entry.is_scalar = true;
  return AddEntry(DType::kF32, {1, 1, 1, 1}, {1, 1, 1, 1}, std::move(entry));
}

// ---- operations
void CudnnGraph::Add(const NormForward& a) {
  const char* what = "the norm";
  const cudnnBackendNormFwdPhase_t phase = CUDNN_NORM_FWD_TRAINING;
  CudnnDescriptor d;
  Create(&d, CUDNN_BACKEND_OPERATION_NORM_FORWARD_DESCRIPTOR, what);
  Set(d, CUDNN_ATTR_OPERATION_NORM_FWD_MODE, CUDNN_TYPE_NORM_MODE, 1, &a.mode, what);
  Set(d, CUDNN_ATTR_OPERATION_NORM_FWD_PHASE, CUDNN_TYPE_NORM_FWD_PHASE, 1, &phase, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_XDESC, a.x, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_MEAN_DESC, a.mean, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_INV_VARIANCE_DESC, a.rstd, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_SCALE_DESC, a.scale, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_BIAS_DESC, a.bias, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_EPSILON_DESC, a.epsilon, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_FWD_YDESC, a.y, what);
  Finalize(d, what);
  operations_.push_back(std::move(d));
}

void CudnnGraph::Add(const NormBackward& a) {
  const char* what = "the gradient of the norm";
  CudnnDescriptor d;
  Create(&d, CUDNN_BACKEND_OPERATION_NORM_BACKWARD_DESCRIPTOR, what);
  Set(d, CUDNN_ATTR_OPERATION_NORM_BWD_MODE, CUDNN_TYPE_NORM_MODE, 1, &a.mode, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_XDESC, a.x, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_MEAN_DESC, a.mean, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_INV_VARIANCE_DESC, a.rstd, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_DYDESC, a.dy, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_SCALE_DESC, a.scale, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_DSCALE_DESC, a.dscale, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_DBIAS_DESC, a.dbias, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_NORM_BWD_DXDESC, a.dx, what);
  Finalize(d, what);
  operations_.push_back(std::move(d));
}

void CudnnGraph::Add(const Convolution& a) {
  // the same seven attributes under three names
  struct Names {
    cudnnBackendDescriptorType_t type;
    cudnnBackendAttributeName_t convolution, x, w, y, alpha, beta;
  };
  static constexpr Names kNames[] = {
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_FORWARD_DESCRIPTOR,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_X,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_W, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_Y,
       CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_FORWARD_BETA},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_DATA_DESCRIPTOR,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DX,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_W, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_DY,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_DATA_BETA},
      {CUDNN_BACKEND_OPERATION_CONVOLUTION_BACKWARD_FILTER_DESCRIPTOR,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_CONV_DESC, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_X,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DW, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_DY,
       CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_ALPHA, CUDNN_ATTR_OPERATION_CONVOLUTION_BWD_FILTER_BETA}};
  const Names& names = kNames[static_cast<size_t>(a.result)];
  const char* what = "the convolution";
  const cudnnDataType_t sums = CUDNN_DATA_FLOAT;
  const cudnnConvolutionMode_t mode = CUDNN_CROSS_CORRELATION;
  const int64_t spatial_dims = 2, ones[] = {1, 1};
  const float alpha = 1, beta = 0;
  CudnnDescriptor c, d;
  Create(&c, CUDNN_BACKEND_CONVOLUTION_DESCRIPTOR, what);
  Set(c, CUDNN_ATTR_CONVOLUTION_COMP_TYPE, CUDNN_TYPE_DATA_TYPE, 1, &sums, what);
  Set(c, CUDNN_ATTR_CONVOLUTION_CONV_MODE, CUDNN_TYPE_CONVOLUTION_MODE, 1, &mode, what);
  Set(c, CUDNN_ATTR_CONVOLUTION_SPATIAL_DIMS, CUDNN_TYPE_INT64, 1, &spatial_dims, what);
  Set(c, CUDNN_ATTR_CONVOLUTION_DILATIONS, CUDNN_TYPE_INT64, spatial_dims, ones, what);
  Set(c, CUDNN_ATTR_CONVOLUTION_FILTER_STRIDES, CUDNN_TYPE_INT64, spatial_dims, ones, what);
  Set(c, CUDNN_ATTR_CONVOLUTION_PRE_PADDINGS, CUDNN_TYPE_INT64, spatial_dims, a.pre.data(), what);
  Set(c, CUDNN_ATTR_CONVOLUTION_POST_PADDINGS, CUDNN_TYPE_INT64, spatial_dims, a.post.data(), what);
  Finalize(c, what);
  Create(&d, names.type, what);
  Set(d, names.convolution, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &c.raw(), what);
  SetTensor(d, names.x, a.x, what);
  SetTensor(d, names.w, a.w, what);
  SetTensor(d, names.y, a.y, what);
  Set(d, names.alpha, CUDNN_TYPE_FLOAT, 1, &alpha, what);
  Set(d, names.beta, CUDNN_TYPE_FLOAT, 1, &beta, what);
  Finalize(d, what);
  parts_.push_back(std::move(c));
  operations_.push_back(std::move(d));
}

void CudnnGraph::AddSwish(Id y, Id x) {
  const char* what = "SiLU";
  const cudnnPointwiseMode_t mode = CUDNN_POINTWISE_SWISH_FWD;
  const cudnnDataType_t precision = CUDNN_DATA_FLOAT;
  CudnnDescriptor p, d;
  Create(&p, CUDNN_BACKEND_POINTWISE_DESCRIPTOR, what);
  Set(p, CUDNN_ATTR_POINTWISE_MODE, CUDNN_TYPE_POINTWISE_MODE, 1, &mode, what);
  Set(p, CUDNN_ATTR_POINTWISE_MATH_PREC, CUDNN_TYPE_DATA_TYPE, 1, &precision, what);
  Finalize(p, what);
  Create(&d, CUDNN_BACKEND_OPERATION_POINTWISE_DESCRIPTOR, what);
  Set(d, CUDNN_ATTR_OPERATION_POINTWISE_PW_DESCRIPTOR, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &p.raw(), what);
  SetTensor(d, CUDNN_ATTR_OPERATION_POINTWISE_XDESC, x, what);
  SetTensor(d, CUDNN_ATTR_OPERATION_POINTWISE_YDESC, y, what);
  Finalize(d, what);
  parts_.push_back(std::move(p));
  operations_.push_back(std::move(d));
}

// ---- plans
bool CudnnGraph::FinalizeGraph() {
  const char* what = "the graph";
  std::vector<cudnnBackendDescriptor_t> raw;
  for (CudnnDescriptor& d : operations_) raw.push_back(d.raw());
  Create(&graph_, CUDNN_BACKEND_OPERATIONGRAPH_DESCRIPTOR, what);
  Set(graph_, CUDNN_ATTR_OPERATIONGRAPH_OPS, CUDNN_TYPE_BACKEND_DESCRIPTOR, static_cast<int64_t>(raw.size()),
      raw.data(), what);
  if (target_.runs()) {
    Set(graph_, CUDNN_ATTR_OPERATIONGRAPH_HANDLE, CUDNN_TYPE_HANDLE, 1, &target_.handle_, what);
  }
  return Finalize(graph_, what);
}

std::vector<CudnnDescriptor> CudnnGraph::Offers(cudnnBackendHeurMode_t mode) {
  const char* what = "the heuristics";
  CudnnDescriptor heuristics;
  std::vector<CudnnDescriptor> offers(kMaxOffers);
  std::vector<cudnnBackendDescriptor_t> raw;
  Create(&heuristics, CUDNN_BACKEND_ENGINEHEUR_DESCRIPTOR, what);
  Set(heuristics, CUDNN_ATTR_ENGINEHEUR_OPERATION_GRAPH, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &graph_.raw(),
      what);
  Set(heuristics, CUDNN_ATTR_ENGINEHEUR_MODE, CUDNN_TYPE_HEUR_MODE, 1, &mode, what);
#if CUDNN_VERSION >= 91100
  if (!target_.runs()) {
    Set(heuristics, CUDNN_ATTR_ENGINEHEUR_DEVICEPROP, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1,
        &target_.properties_.raw(), what);
  }
#endif
  Finalize(heuristics, what);
  for (CudnnDescriptor& d : offers) {
    Create(&d, CUDNN_BACKEND_ENGINECFG_DESCRIPTOR, what);
    raw.push_back(d.raw());
  }
  int64_t count = 0;
  if (error_.empty()) {
    Check(cudnnBackendGetAttribute(heuristics.raw(), CUDNN_ATTR_ENGINEHEUR_RESULTS,
                                   CUDNN_TYPE_BACKEND_DESCRIPTOR, kMaxOffers, &count, raw.data()),
          what);
  }
  offers.resize(static_cast<size_t>(error_.empty() ? std::clamp<int64_t>(count, 0, kMaxOffers) : 0));
  return offers;
}

void CudnnGraph::MakePlan(CudnnDescriptor configuration, const char* heuristics, CudnnPlans* plans) {
  const char* what = "an execution plan";
  // what the engine is
  CudnnDescriptor engine;
  int64_t index = -1, count = 0, num_notes = 0;
  cudnnBackendNumericalNote_t notes[kMaxNotes];
  Create(&engine, CUDNN_BACKEND_ENGINE_DESCRIPTOR, what);
  if (!error_.empty()) return;
  Check(cudnnBackendGetAttribute(configuration.raw(), CUDNN_ATTR_ENGINECFG_ENGINE,
                                 CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &count, &engine.raw()),
        what);
  if (!error_.empty()) return;
  Check(cudnnBackendGetAttribute(engine.raw(), CUDNN_ATTR_ENGINE_GLOBAL_INDEX, CUDNN_TYPE_INT64, 1, &count,
                                 &index),
        what);
  Check(cudnnBackendGetAttribute(engine.raw(), CUDNN_ATTR_ENGINE_NUMERICAL_NOTE, CUDNN_TYPE_NUMERICAL_NOTE,
                                 kMaxNotes, &num_notes, notes),
        what);
  if (!error_.empty()) return;
  const auto* end = notes + std::clamp<int64_t>(num_notes, 0, kMaxNotes);
  if (std::find(static_cast<const cudnnBackendNumericalNote_t*>(notes), end,
                CUDNN_NUMERICAL_NOTE_NONDETERMINISTIC) != end) {
    ++plans->num_not_reproducible;
    return;
  }
  // the plan
  CudnnPlan p;
  p.name = "engine " + std::to_string(index) + " (" + heuristics + ")";
  Create(&p.plan, CUDNN_BACKEND_EXECUTION_PLAN_DESCRIPTOR, what);
#if CUDNN_VERSION >= 91100
  SetTarget(p.plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_DEVICEPROP, what);
#else
  SetTarget(p.plan, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, CUDNN_ATTR_EXECUTION_PLAN_HANDLE, what);
#endif
  Set(p.plan, CUDNN_ATTR_EXECUTION_PLAN_ENGINE_CONFIG, CUDNN_TYPE_BACKEND_DESCRIPTOR, 1, &configuration.raw(),
      what);
  if (!Finalize(p.plan, what)) return;
  if (!Check(cudnnBackendGetAttribute(p.plan.raw(), CUDNN_ATTR_EXECUTION_PLAN_WORKSPACE_SIZE,
                                      CUDNN_TYPE_INT64, 1, &count, &p.workspace_bytes),
             what)) {
    return;
  }
  p.configuration = std::move(configuration);
  plans->plans.push_back(std::move(p));
}

CudnnPlans CudnnGraph::MakePlans() {
  CudnnPlans result;
  if (!FinalizeGraph()) {
    result.refusal = error_;
    return result;
  }
  std::string first_refusal;
  for (const auto& [mode, name] :
       {std::pair{CUDNN_HEUR_MODE_A, "A"}, {CUDNN_HEUR_MODE_FALLBACK, "fallback"}}) {
    for (CudnnDescriptor& offer : Offers(mode)) {
      MakePlan(std::move(offer), name, &result);
      // an engine that refuses is no error of the graph: the next one may take it
      if (first_refusal.empty()) first_refusal = error_;
      error_.clear();
    }
    if (first_refusal.empty()) first_refusal = error_;
    error_.clear();
    if (!result.plans.empty()) break;
  }
  if (result.plans.empty()) {
    result.refusal = !first_refusal.empty()            ? first_refusal
                     : result.num_not_reproducible > 0 ? "only engines whose bits differ from run to run"
                                                       : "the heuristics offer no engine";
  }
  return result;
}

void CudnnGraph::MakePack(CudnnPlan& plan, void* workspace) {
  const char* what = "the plan's arguments";
  std::vector<int64_t> ids;
  std::vector<void*> memory;
  for (size_t i = 0; i < tensors_.size(); ++i) {
    TensorEntry& t = tensors_[i];
    if (t.is_virtual) continue;
    ids.push_back(static_cast<int64_t>(i) + 1);
    memory.push_back(t.is_scalar ? &t.scalar : t.memory);
  }
  const auto count = static_cast<int64_t>(ids.size());
  Create(&plan.pack, CUDNN_BACKEND_VARIANT_PACK_DESCRIPTOR, what);
  Set(plan.pack, CUDNN_ATTR_VARIANT_PACK_UNIQUE_IDS, CUDNN_TYPE_INT64, count, ids.data(), what);
  Set(plan.pack, CUDNN_ATTR_VARIANT_PACK_DATA_POINTERS, CUDNN_TYPE_VOID_PTR, count, memory.data(), what);
  Set(plan.pack, CUDNN_ATTR_VARIANT_PACK_WORKSPACE, CUDNN_TYPE_VOID_PTR, 1, &workspace, what);
  Finalize(plan.pack, what);
}

bool CudnnGraph::Run(CudnnPlan& plan, void* workspace, std::string* error) {
  CAROUSEL_CHECK(target_.runs());
  if (plan.pack.raw() == nullptr) MakePack(plan, workspace);
  if (error_.empty()) {
    Check(cudnnBackendExecute(target_.handle_, plan.plan.raw(), plan.pack.raw()), "execution");
  }
  if (error_.empty()) return true;
  *error = std::exchange(error_, {});
  return false;
}
}  // namespace carousel

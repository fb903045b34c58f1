// line_kernel on a CPU as a node of PyTorch's graph, by the functions of line.c: `rotateconv.kernels.fused_native` in
// C++, for between two convolutions every function of Python is fetched again from memory.
//
// It takes plain tensors alone, and returns none for others, which Python sees to.
#include <optional>
#include <string_view>
#include <tuple>

#include <ATen/Parallel.h>
#include <ATen/autocast_mode.h>
#include <ATen/core/Tensor.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/empty.h>
#include <c10/core/impl/LocalDispatchKeySet.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/library.h>

#include "line.h"

namespace rotateconv {  // as PyTorch names the node in a graph

using at::Tensor;
using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

decltype(&rotateconv_line_forward) line_forward = nullptr;
decltype(&rotateconv_line_backward) line_backward = nullptr;

void bind(int64_t forward, int64_t backward) {
  line_forward = reinterpret_cast<decltype(line_forward)>(forward);
  line_backward = reinterpret_cast<decltype(line_backward)>(backward);
}

constexpr int64_t SLICES_A_THREAD = 1 << 15;  // a thread costs some 20 µs to start, these slices about 150

// A dense tensor of a CPU with its numbers in memory as they are: none of a transform, a subclass, or to be negated, and
// none whose memory was freed.
bool is_plain(const Tensor& tensor) {
  constexpr c10::DispatchKeySet plain({c10::DispatchKey::CPU, c10::DispatchKey::AutogradCPU,
                                       c10::DispatchKey::AutocastCPU, c10::DispatchKey::ADInplaceOrView});
  return (tensor.key_set().raw_repr() & ~plain.raw_repr()) == 0 &&
      tensor.unsafeGetTensorImpl()->storage_initialized();
}

// By a mode that counts operations or stands for them, a transform, or a tracer.
bool is_watched() {
  constexpr c10::DispatchKeySet watchers({c10::DispatchKey::Python, c10::DispatchKey::FuncTorchDynamicLayerFrontMode,
                                          c10::DispatchKey::Tracer, c10::DispatchKey::Functionalize});
  return c10::impl::tls_local_dispatch_key_set().included_.has_any(watchers);
}

std::optional<int> type_number(at::ScalarType type) {
  switch (type) {
    case at::kFloat: return FLOAT32;
    case at::kDouble: return FLOAT64;
    case at::kBFloat16: return BFLOAT16;
    case at::kHalf: return FLOAT16;
    default: return std::nullopt;
  }
}

// Whether the library can read them: contiguous, of one of its types and of sizes that belong together.
bool fits(const Tensor& weight, const Tensor& angle, const Tensor& profile, int64_t size) {
  const auto source = weight.scalar_type();
  const bool taps = weight.dim() == angle.dim() + 1 && weight.sizes().slice(0, angle.dim()) == angle.sizes() &&
      (weight.size(-1) == 1 || (weight.size(-1) == size && !profile.defined()));
  const bool profiles = !profile.defined() ||
      (angle.dim() == 2 && profile.sizes() == at::IntArrayRef({angle.size(0), size}) &&
       profile.scalar_type() == source && is_plain(profile) && profile.is_contiguous());
  return taps && profiles && (source == at::kFloat || source == at::kDouble) && angle.scalar_type() == source &&
      is_plain(weight) && is_plain(angle) && weight.is_contiguous() && angle.is_contiguous();
}

struct Kind {  // what a layer's kernels have in common
  int64_t size;
  bool square, last;
  double scale;
  at::ScalarType dtype;

  at::IValue saved() const { return c10::ivalue::Tuple::create(size, square, last, scale, dtype); }

  static Kind of(const at::IValue& saved) {
    const auto& values = saved.toTupleRef().elements();
    return {values[0].toInt(), values[1].toBool(), values[2].toBool(), values[3].toDouble(), values[4].toScalarType()};
  }

  at::MemoryFormat layout() const { return last ? at::MemoryFormat::ChannelsLast : at::MemoryFormat::Contiguous; }

  Call call(const Tensor& weight, const Tensor& angle) const {
    const int64_t count = angle.numel();
    Call call{};
    call.scale = scale;
    call.rows = angle.dim() == 2 ? angle.size(0) : 1;
    call.length = angle.dim() == 2 ? angle.size(1) : count;
    call.size = static_cast<int>(size);
    call.taps = static_cast<int>(weight.size(-1));
    call.square = square;
    call.type = *type_number(dtype);
    call.last = last;
    call.is_double = angle.scalar_type() == at::kDouble;
    const int64_t most = count / SLICES_A_THREAD;
    call.threads = most > 1 ? static_cast<int>(std::min<int64_t>(at::get_num_threads(), most)) : 1;
    return call;
  }
};

const void* data(const Tensor& tensor) { return tensor.defined() ? tensor.const_data_ptr() : nullptr; }

// A tensor for a gradient, if it is asked for.
Tensor room(const Tensor& tensor, bool needed) {
  return needed ? at::empty(tensor.sizes(), tensor.options()) : Tensor();
}

void* mutable_data(const Tensor& tensor) { return tensor.defined() ? tensor.mutable_data_ptr() : nullptr; }

class LineKernel : public torch::autograd::Function<LineKernel> {
 public:
  static Tensor forward(AutogradContext* ctx, const Tensor& weight, const Tensor& angle,
                        const std::optional<Tensor>& profile, const Kind& kind) {
    ctx->save_for_backward({weight, angle, profile.value_or(Tensor())});
    ctx->saved_data["kind"] = kind.saved();
    auto shape = angle.sizes().vec();
    shape.insert(shape.end(), 2, kind.size);
    Tensor kernel = at::empty(shape, angle.options().dtype(kind.dtype), kind.layout());
    const Call call = kind.call(weight, angle);
    line_forward(&call, data(weight), data(angle), profile ? data(*profile) : nullptr, kernel.mutable_data_ptr());
    return kernel;
  }

  static variable_list backward(AutogradContext* ctx, variable_list grads) {
    const auto saved = ctx->get_saved_variables();
    const Tensor &weight = saved[0], &angle = saved[1], &profile = saved[2];
    const Kind kind = Kind::of(ctx->saved_data["kind"]);
    Tensor grad = grads[0];
    // To be differentiated again, in a direction too, for a batch of gradients at once, or of what hooks on saved
    // tensors gave back in another form: as autograd would have it.
    if (at::GradMode::is_enabled() || !is_plain(grad) || grad._fw_grad(0).defined() || is_watched() ||
        !fits(weight, angle, profile, kind.size) || grad.dim() != angle.dim() + 2 ||
        grad.sizes().slice(0, angle.dim()) != angle.sizes()) {
      auto [to_weight, to_angle, to_profile] = reference(weight, angle, profile, grad, kind);
      return {to_weight, to_angle, profile.defined() ? to_profile : Tensor(), Tensor()};
    }
    if (grad.scalar_type() != kind.dtype) grad = grad.to(kind.dtype);
    grad = grad.contiguous(kind.layout());
    const Call call = kind.call(weight, angle);
    const Tensor to_weight = room(weight, ctx->needs_input_grad(0)), to_angle = room(angle, ctx->needs_input_grad(1));
    const Tensor to_profile = room(profile, profile.defined() && ctx->needs_input_grad(2));
    line_backward(&call, data(weight), data(angle), data(profile), data(grad), mutable_data(to_weight),
                  mutable_data(to_angle), mutable_data(to_profile));
    return {to_weight, to_angle, to_profile, Tensor()};
  }

 private:
  using Three = std::tuple<Tensor, Tensor, Tensor>;

  static Three reference(const Tensor& weight, const Tensor& angle, const Tensor& profile, const Tensor& grad,
                         const Kind& kind) {
    using Gradients = Three(const Tensor&, const Tensor&, const std::optional<Tensor>&, const Tensor&, int64_t,
                            std::string_view, double);
    static const auto op = c10::Dispatcher::singleton()
        .findSchemaOrThrow("rotateconv::line_kernel_gradients", "").typed<Gradients>();
    const auto own = profile.defined() ? std::optional<Tensor>(profile) : std::nullopt;
    return op.call(weight, angle, own, grad, kind.size, kind.square ? "square" : "circle", kind.scale);
  }
};

std::optional<Tensor> line_kernel(const Tensor& weight, const Tensor& angle, const std::optional<Tensor>& profile,
                                  int64_t size, std::string_view path, double scale,
                                  std::optional<at::ScalarType> dtype, bool last) {
  const auto type = dtype.value_or(weight.scalar_type());
  const bool square = path == "square";
  const bool known = (square || path == "circle") && size % 2 == 1 && size >= 3 && size <= LARGEST && type_number(type);
  if (!known || !fits(weight, angle, profile.value_or(Tensor()), size)) return std::nullopt;
  const Kind kind{size, square, last && angle.dim() == 2, scale, type};
  return LineKernel::apply(weight, angle, profile, kind);
}

// conv2d of the input with these kernels, which are made as it reads them: in autocast's type, and in its order.
std::optional<Tensor> line_conv2d(const Tensor& input, const Tensor& weight, const Tensor& angle,
                                  const std::optional<Tensor>& profile, const std::optional<Tensor>& bias, int64_t size,
                                  std::string_view path, double scale,
                                  at::IntArrayRef stride, at::IntArrayRef padding, at::IntArrayRef dilation,
                                  int64_t groups) {
  std::optional<at::ScalarType> dtype;
  if (at::autocast::is_autocast_enabled(at::kCPU) && weight.scalar_type() != at::kDouble) {
    dtype = at::autocast::get_autocast_dtype(at::kCPU);
  }
  const bool last = input.dim() == 4 && input.size(1) > 1 && input.stride(1) == 1;
  const auto kernel = line_kernel(weight, angle, profile, size, path, scale, dtype, last);
  if (!kernel) return std::nullopt;
  return at::conv2d(input, *kernel, bias, stride, padding, dilation, groups);
}

}  // namespace rotateconv

TORCH_LIBRARY_FRAGMENT(rotateconv, library) {
  using namespace rotateconv;
  library.def("bind(int forward, int backward) -> ()", bind);
  library.def(
      "line_kernel(Tensor weight, Tensor angle, Tensor? profile, int size, str path, float scale, ScalarType? dtype, "
      "bool last) -> Tensor?", line_kernel);
  library.def(
      "line_conv2d(Tensor input, Tensor weight, Tensor angle, Tensor? profile, Tensor? bias, int size, str path, "
      "float scale, int[2] stride, int[2] padding, int[2] dilation, int groups) -> Tensor?", line_conv2d);
}

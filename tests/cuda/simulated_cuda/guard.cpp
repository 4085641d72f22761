// Registers a CUDA that has two devices and no hardware, so that a CPU build of torch accepts device="cuda".
// Nothing here computes: tensors are wrapped in Python (tensor.py).

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <c10/core/Stream.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>

namespace {

constexpr c10::DeviceIndex N_DEVICES = 2;
thread_local c10::DeviceIndex current = 0;

c10::DeviceIndex exchange(c10::DeviceIndex next) {
  const auto before = current;
  if (next >= 0) {
    TORCH_CHECK(next < N_DEVICES, "CUDA error: invalid device ordinal");
    current = next;
  }
  return before;
}

c10::Device device(c10::DeviceIndex index) {
  return c10::Device(c10::DeviceType::CUDA, index);
}

struct Guard final : public c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device next) const override { return device(exchange(next.index())); }
  c10::Device getDevice() const override { return device(current); }
  void setDevice(c10::Device next) const override { exchange(next.index()); }
  void uncheckedSetDevice(c10::Device next) const noexcept override {
    if (next.index() >= 0) current = next.index();
  }
  c10::Stream getStream(c10::Device of) const override {
    return c10::Stream(c10::Stream::DEFAULT, of.has_index() ? of : device(current));
  }
  c10::Stream getNewStream(c10::Device of, int) const override { return getStream(of); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return stream; }
  c10::DeviceIndex deviceCount() const noexcept override { return N_DEVICES; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void destroyEvent(void*, const c10::DeviceIndex) const noexcept override {}
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
};

}  // namespace

namespace at {

// A generator of the device: the CPU's operations refuse it, and it holds the state of a CPU's generator.
struct Generator_ final : public CPUGeneratorImpl {
  explicit Generator_(DeviceIndex index) { device_ = Device(DeviceType::CUDA, index < 0 ? current : index); }
};

struct Hooks final : public CUDAHooksInterface {
  Hooks(CUDAHooksArgs) {}
  void init() const override {}
  bool hasCUDA() const override { return true; }
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex deviceCount() const override { return N_DEVICES; }
  int getNumGPUs() const override { return N_DEVICES; }
  void setCurrentDevice(DeviceIndex index) const override { exchange(index); }
  DeviceIndex getCurrentDevice() const override { return current; }
  DeviceIndex current_device() const override { return current; }
  DeviceIndex exchangeDevice(DeviceIndex index) const override { return exchange(index); }
  DeviceIndex maybeExchangeDevice(DeviceIndex index) const override { return exchange(index); }
  bool isPinnedPtr(const void*) const override { return false; }  // pinned.py knows
  void deviceSynchronize(DeviceIndex) const override {}
  const Generator& getDefaultGenerator(DeviceIndex index) const override {
    static const Generator first = make_generator<Generator_>(0), second = make_generator<Generator_>(1);
    return (index < 0 ? current : index) == 0 ? first : second;
  }
  Generator getNewGenerator(DeviceIndex index) const override { return make_generator<Generator_>(index); }
};

using at::CUDAHooksRegistry;
C10_REGISTER_CLASS(CUDAHooksRegistry, CUDAHooks, Hooks);

}  // namespace at

extern "C" int simulated_exchange_device(int next) {
  return exchange(static_cast<c10::DeviceIndex>(next));
}

namespace {

const bool registered = [] {
  static Guard guard;
  c10::impl::device_guard_impl_registry[static_cast<size_t>(c10::DeviceType::CUDA)].store(&guard);
  return true;
}();

}  // namespace

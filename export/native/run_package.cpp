// Runs a component of an artifact of the format aoti, without Python.
//
//   run_package ARTIFACT COMPONENT                         prints what it was made from
//   run_package ARTIFACT COMPONENT INPUTS.pt OUTPUTS.pt    runs it
//
// The inputs are tensors by name, as torch.save({"input_ids": ...}, path) writes them; the outputs
// are a tuple, in the order of modes_fx_outputs, that torch.load reads. docs/export.md says how to
// build it.
#include <ATen/Version.h>
#include <ATen/cpu/Utils.h>
#include <c10/core/InferenceMode.h>
#include <torch/csrc/inductor/aoti_package/model_package_loader.h>
#include <torch/csrc/jit/serialization/pickle.h>

#include <dlfcn.h>

#include <cctype>
#include <exception>
#include <filesystem>
#include <fstream>
#include <iostream>
#include <iterator>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <unordered_map>
#include <vector>

namespace {

namespace fs = std::filesystem;
using Loader = torch::inductor::AOTIModelPackageLoader;
using Metadata = std::unordered_map<std::string, std::string>;

const char* const INSTRUCTION_SET = "modes_fx_instruction_set";

std::vector<std::string> words(const std::string& text) {
  std::istringstream stream(text);
  return {std::istream_iterator<std::string>(stream), {}};
}

std::vector<char> read_bytes(const fs::path& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file) throw std::runtime_error(path.string() + " cannot be read");
  return {std::istreambuf_iterator<char>(file), {}};
}

std::string get(const Metadata& metadata, const std::string& key) {
  const auto found = metadata.find(key);
  if (found == metadata.end()) {
    throw std::runtime_error("the package does not say its " + key + ": export the model again");
  }
  return found->second;
}

// Whether this processor has an instruction set, by the names of modes-fx and of inductor.
// ATEN_CPU_CAPABILITY limits it, as it limits PyTorch's own kernels. What is not listed here is
// part of an architecture, and no library is opened on another one.
bool has_instructions(std::string name) {
  for (char& c : name) c = std::tolower(c);
  static const std::map<std::string, std::string> capabilities = {
      {"avx2", "avx2"},
      {"avx512", "avx512_f"},
      {"avx512_bf16", "avx512_bf16"},
      {"avx512_vnni", "avx512_vnni"},
      {"amx_bf16", "amx_tile"},
      {"amx_tile", "amx_tile"}};
  const auto capability = capabilities.find(name);
  if (capability == capabilities.end()) return true;
  const std::string limit = at::get_cpu_capability();
  if (limit != "AVX512" && !(name == "avx2" && limit == "AVX2")) return false;
  const auto here = at::cpu::get_cpu_capabilities();
  const auto found = here.find(capability->second);
  return found != here.end() && found->second.isBool() && found->second.toBool();
}

void check_processor(const Metadata& metadata) {
  // Kernels are built for the first, what inductor compiled around them for the second.
  for (const char* key : {INSTRUCTION_SET, "AOTI_CPU_ISA"}) {
    for (const std::string& name : words(get(metadata, key))) {
      if (has_instructions(name)) continue;
      throw std::runtime_error(
          "the package was compiled for " + name + ", which this processor (" +
          at::get_cpu_capability() + ") has not: export the model on one like it");
    }
  }
}

void check_exists(const fs::path& path) {
  if (!fs::exists(path)) {
    throw std::runtime_error(path.string() + " is missing: copy the whole folder of the artifact");
  }
}

void check_ops(const Metadata& metadata) {
  const std::string& in_python = get(metadata, "modes_fx_ops_in_python");
  if (in_python.empty()) return;
  throw std::runtime_error(
      "the package calls " + in_python + ", which are written in Python: run it with "
      "torch._inductor.aoti_load_package after import modes_fx.ops, modes_fx.mean_ops");
}

// Opens what the package calls, in the order in which one needs the other.
void open_libraries(const fs::path& folder) {
  const std::vector<char> order = read_bytes(folder / "load_order");
  for (const std::string& name : words({order.begin(), order.end()})) {
    const fs::path path = folder / name;
    check_exists(path);
    if (!dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL)) throw std::runtime_error(dlerror());
  }
}

std::vector<at::Tensor> in_order(const c10::IValue& given, const std::string& names) {
  if (!given.isGenericDict()) throw std::runtime_error("the inputs are no dict of tensors by name");
  const auto by_name = given.toGenericDict();
  const std::vector<std::string> order = words(names);
  std::vector<at::Tensor> tensors;
  for (const std::string& name : order) {
    const auto found = by_name.find(name);
    if (found == by_name.end()) {
      throw std::runtime_error("the component takes " + names + ": " + name + " is missing");
    }
    tensors.push_back(found->value().toTensor());
  }
  if (by_name.size() != order.size()) {
    throw std::runtime_error("the component takes " + names + ", and no more");
  }
  return tensors;
}

void save(const std::vector<at::Tensor>& tensors, const fs::path& path) {
  // A tuple: dicts and lists are written with a type that torch.load takes for code.
  const auto tuple = c10::ivalue::Tuple::create({tensors.begin(), tensors.end()});
  const std::vector<char> bytes = torch::jit::pickle_save(tuple);
  std::ofstream file(path, std::ios::binary);
  file.write(bytes.data(), std::streamsize(bytes.size()));
  if (!file.flush()) throw std::runtime_error(path.string() + " cannot be written");
}

void run(const fs::path& artifact, const std::string& component, int argc, char** argv) {
  const std::string package = (artifact / (component + ".aoti.pt2")).string();
  check_exists(package);
  const Metadata metadata = Loader::load_metadata_from_package(package, "model");
  if (argc == 3) {
    for (const auto& [key, value] : std::map(metadata.begin(), metadata.end())) {
      std::cout << key << " = " << value << '\n';
    }
    return;
  }
  check_processor(metadata);
  check_ops(metadata);
  open_libraries(artifact / "lib");
  Loader loader(package);
  const c10::InferenceMode guard;
  const c10::IValue inputs = torch::jit::pickle_load(read_bytes(argv[3]));
  save(loader.run(in_order(inputs, get(metadata, "modes_fx_inputs"))), argv[4]);
}

}  // namespace

int main(int argc, char** argv) {
  if (argc != 3 && argc != 5) {
    std::cerr << "usage: " << argv[0] << " ARTIFACT COMPONENT [INPUTS.pt OUTPUTS.pt]\n";
    return 2;
  }
  try {
    run(argv[1], argv[2], argc, argv);
  } catch (const std::exception& error) {
    std::cerr << "run_package: " << error.what() << '\n';
    return 1;
  }
}

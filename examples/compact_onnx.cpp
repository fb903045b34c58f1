// Class of an image of floats (channels x height x width, normalized): ./compact_onnx digits.onnx image.f32 1 8 8
// g++ -std=c++17 -I include compact_onnx.cpp -L lib -lonnxruntime -o compact_onnx, with a release of ONNX Runtime
#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cstdlib>
#include <fstream>
#include <iostream>
#include <vector>

int main(int, char** given) {
    Ort::Env environment;
    Ort::Session session(environment, given[1], Ort::SessionOptions());  // decodes the kernels, once
    std::vector<int64_t> shape{1, std::atoll(given[3]), std::atoll(given[4]), std::atoll(given[5])};
    std::vector<float> pixels(shape[1] * shape[2] * shape[3]);
    std::ifstream(given[2], std::ios::binary).read(reinterpret_cast<char*>(pixels.data()), 4 * pixels.size());
    auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
    auto images = Ort::Value::CreateTensor<float>(memory, pixels.data(), pixels.size(), shape.data(), shape.size());
    const char *input = "images", *output = "logits";
    auto found = session.Run(Ort::RunOptions(), &input, &images, 1, &output, 1);
    const float* logits = found[0].GetTensorData<float>();
    std::cout << std::max_element(logits, logits + found[0].GetTensorTypeAndShapeInfo().GetElementCount()) - logits << "\n";
}

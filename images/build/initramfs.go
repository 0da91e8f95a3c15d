package build

import "context"

// Initramfs makes an initramfs with the product's modules and opts.Init as its
// first program, and writes it to path. It returns where the kernel that
// belongs to it is, in the cache. opts are as for [Build].
func Initramfs(ctx context.Context, opts Options, path string) (kernelImage string, err error) {
	b, err := newBuild(ctx, opts)
	if err != nil {
		return "", err
	}
	defer b.cleanUp()
	if err := b.fetchKernel(ctx); err != nil {
		return "", err
	}
	return b.kernel.image, b.buildInitramfs(ctx, path)
}

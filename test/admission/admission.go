// Copyright The Sluice Authors.
// SPDX-License-Identifier: Apache-2.0

// Package admission installs config/webhook for tests, so that what an API server is
// told to ask is what is installed on a cluster.
package admission

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"

	admissionregistrationv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/yaml"
	"sigs.k8s.io/controller-runtime/pkg/client"
)

// owner is the field manager of what is installed.
const owner = client.FieldOwner("sluice-test")

// Install applies config/webhook below the root of the repository. The webhooks are
// reached at base, such as https://127.0.0.1:9443, with a certificate of ca's.
func Install(ctx context.Context, c client.Client, root, base string, ca []byte) error {
	objects, err := Read(filepath.Join(root, "config", "webhook"))
	if err != nil {
		return err
	}
	for _, object := range objects {
		if err := redirect(object, base, ca); err != nil {
			return err
		}
	}
	return Apply(ctx, c, objects...)
}

// Apply applies objects on the server's side.
func Apply(ctx context.Context, c client.Client, objects ...*unstructured.Unstructured) error {
	for _, object := range objects {
		if err := c.Apply(ctx, client.ApplyConfigurationFromUnstructured(object), owner, client.ForceOwnership); err != nil {
			return fmt.Errorf("apply %s %s: %w", object.GetKind(), object.GetName(), err)
		}
	}
	return nil
}

// Read reads the objects in the YAML files of a folder, in the order of their names.
func Read(dir string) ([]*unstructured.Unstructured, error) {
	files, err := filepath.Glob(filepath.Join(dir, "*.yaml"))
	if err != nil || len(files) == 0 {
		return nil, fmt.Errorf("find YAML files in %s: %w", dir, errors.Join(err, os.ErrNotExist))
	}
	var objects []*unstructured.Unstructured
	for _, file := range files {
		content, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		for decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewReader(content), len(content)); ; {
			object := &unstructured.Unstructured{}
			err := decoder.Decode(object)
			if errors.Is(err, io.EOF) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("read %s: %w", file, err)
			}
			if len(object.Object) > 0 {
				objects = append(objects, object)
			}
		}
	}
	return objects, nil
}

// redirect has a webhook configuration name an address in place of a Service.
func redirect(object *unstructured.Unstructured, base string, ca []byte) error {
	var configurations []*admissionregistrationv1.WebhookClientConfig
	var typed any
	switch object.GetKind() {
	case "MutatingWebhookConfiguration":
		configuration := &admissionregistrationv1.MutatingWebhookConfiguration{}
		typed = configuration
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, configuration); err != nil {
			return err
		}
		for i := range configuration.Webhooks {
			configurations = append(configurations, &configuration.Webhooks[i].ClientConfig)
		}
	case "ValidatingWebhookConfiguration":
		configuration := &admissionregistrationv1.ValidatingWebhookConfiguration{}
		typed = configuration
		if err := runtime.DefaultUnstructuredConverter.FromUnstructured(object.Object, configuration); err != nil {
			return err
		}
		for i := range configuration.Webhooks {
			configurations = append(configurations, &configuration.Webhooks[i].ClientConfig)
		}
	default:
		return nil
	}
	for _, configuration := range configurations {
		url := base + *configuration.Service.Path
		*configuration = admissionregistrationv1.WebhookClientConfig{URL: &url, CABundle: ca}
	}
	content, err := runtime.DefaultUnstructuredConverter.ToUnstructured(typed)
	object.Object = content
	return err
}
